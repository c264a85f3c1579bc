"""What is in there: a table of a data set, a picture of it, and the proof that it is whole."""

import hashlib
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from aime_fast.data.manifest import ActionStatistics, Manifest, load_manifest, split_of_episodes
from aime_fast.data.shard_reader import ShardReader, open_shards
from aime_fast.data.sources import Source, open_source
from aime_fast.data.store import SAMPLE
from aime_fast.errors import UserError

SHEET_ROWS, SHEET_COLUMNS = 16, 12


def inspect(path: str | Path | None = None, *, deep: bool = False, contact_sheet: str | Path | None = None) -> str:
    """Describe a folder of shards or a recording (None: the recorded sample) as a table of a few lines.

    `deep` reads everything: all checksums, every member of every shard, all pixels and the action statistics.
    `contact_sheet` names a PNG to write: a row for each of the first 16 episodes, 12 frames spread over it; an
    existing file is not replaced. `UserError` names the first file that is missing or damaged.
    """
    path = SAMPLE if path is None else Path(path)
    source = open_source(path)
    manifest = load_manifest(path) if source.format == "shards" else None
    splits = (
        [entry.split for entry in manifest.episodes] if manifest else split_of_episodes(len(source.lengths), None, None)
    )
    lines = _summary(path, source, splits, manifest)
    if deep:
        statistics = ActionStatistics()
        for episode in source.read():
            statistics.add(episode)
        found = statistics.over([split == "train" for split in splits])
        if manifest is None:
            lines += _statistics_table(found)
        else:
            _verify_files(path)
            if not _same(found, manifest.action_statistics):
                raise UserError(f"{path}: the manifest's action statistics are not those of the actions; pack it again")
        lines.append(f"deep check     {sum(source.lengths)} frames read, all whole")
    if contact_sheet:
        lines.append(f"contact sheet  {_write_contact_sheet(source, Path(contact_sheet))}")
    return "\n".join(lines)


def _summary(path: Path, source: Source, splits: list[str], manifest: Manifest | None) -> list[str]:
    lines = [f"data           {path} ({source.format})", f"environment    {source.environment or 'not recorded'}"]
    for split in ("train", "val"):
        lengths = [length for length, own in zip(source.lengths, splits, strict=True) if own == split]
        span = f", {min(lengths)} to {max(lengths)} in an episode" if lengths else ""
        lines.append(f"{split:<14} {len(lengths)} episodes, {sum(lengths)} frames{span}")
    lines += [f"note           {note}" for note in source.notes]
    if manifest:
        size = sum(shard.bytes for shard in manifest.shards) / 1e6
        count = len(manifest.shards)
        seed = "the last episodes validate" if manifest.split_seed is None else f"split seed {manifest.split_seed}"
        codec = f"{manifest.codec} (lossy: {manifest.encoder})" if manifest.lossy else manifest.codec
        lines.append(f"shards         {count}, {size:.1f} MB, codec {codec}, {seed}")
        lines += _statistics_table(manifest.action_statistics)
    return lines


def _statistics_table(statistics: dict[str, list[float]]) -> list[str]:
    lines = [f"{'action':>6}" + "".join(f"{name:>10}" for name in statistics)]
    for number, row in enumerate(zip(*statistics.values(), strict=True)):
        lines.append(f"{number:>6}" + "".join(f"{value:>10.4f}" for value in row))
    return lines


def _same(found: dict[str, list[float]], recorded: dict[str, list[float]]) -> bool:
    """Whether two tables of statistics agree to the last of the six decimals that are kept."""
    return found.keys() == recorded.keys() and all(
        len(found[name]) == len(recorded[name]) and np.allclose(found[name], recorded[name], rtol=0, atol=2e-6)
        for name in found
    )


def _verify_files(folder: Path) -> None:
    """Compare every file with its sha256, and every tar with its index, member by member."""
    manifest, readers = open_shards(folder)
    for shard, reader in zip(manifest.shards, readers, strict=True):
        index = reader.path.with_suffix(".idx")
        for file, wanted in ((reader.path, shard.sha256), (index, shard.index_sha256)):
            with file.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != wanted:
                    raise UserError(f"{file}: is damaged (wrong sha256); copy or pack the data again")
        _verify_members(reader, index)


def _verify_members(reader: ShardReader, index: Path) -> None:
    listed = [line.split(" ") for line in index.read_text(encoding="utf-8").splitlines()[1:]]
    expected = [(row[i + 3], int(row[i + 1]), int(row[i + 2])) for row in listed for i in range(0, len(row), 4)]
    try:
        with tarfile.open(reader.path, "r:") as archive:
            members = [(member.name, member.offset_data, member.size) for member in archive]
    except tarfile.TarError as error:
        raise UserError(f"{reader.path}: not a whole tar file ({error}); copy or pack the data again") from error
    if members != expected:
        raise UserError(f"{reader.path}: its members are not those of its index; copy or pack the data again")


def _write_contact_sheet(source: Source, path: Path) -> Path:
    if os.path.exists(path):
        raise UserError(f"{path}: exists already; choose another name for the contact sheet")
    rows = []
    for episode, _ in zip(source.read(), range(SHEET_ROWS), strict=False):
        picks = np.linspace(0, len(episode) - 1, SHEET_COLUMNS).round().astype(int)
        rows.append(np.concatenate(list(episode.observations[picks]), axis=1))
    try:
        Image.fromarray(np.concatenate(rows)).save(path, "PNG")
    except OSError as error:
        raise UserError(f"{path}: the contact sheet cannot be written ({error}); choose another place") from error
    return path
