"""`aime-fast inspect`: a table of a data set, a picture of it, and a check of every byte."""

import hashlib
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.files import SAMPLE
from aime_fast.data.packing.pack import look_at_alignment
from aime_fast.data.shards.manifest import Manifest, action_moments, action_statistics, load_manifest, split_of_episodes
from aime_fast.data.shards.reader import ShardReader, open_shards
from aime_fast.data.shards.states import STATE, STATES
from aime_fast.data.sources import Source, open_source
from aime_fast.data.survey import FrameSurvey, action_limits
from aime_fast.errors import UserError
from aime_fast.reporting.figures import save_rows

SHEET_ROWS, SHEET_COLUMNS = 16, 12
SURVEYED_EPISODES = 4
"""Largest number of episodes, evenly spaced, that are read to find what can't be learnt, unless all are read."""


def inspect(
    path: str | Path | None = None,
    *,
    actions: str | None = None,
    deep: bool = False,
    contact_sheet: str | Path | None = None,
) -> str:
    """Describe a folder of shards or a recording (None: the shipped sample) as a table of a few lines.

    `actions` is that of `open_source`. Lines named `limit` say what can't be learnt from its actions and frames; up to
    four episodes are read for them.
    `deep` reads everything: all checksums, all members of all shards, all pixels, and the action statistics.
    `contact_sheet` names a new PNG: 12 evenly spaced frames of each of the first 16 episodes. `UserError` names the
    first missing or damaged file.
    """
    path = SAMPLE if path is None else Path(path)
    source = open_source(path, actions=actions)
    manifest = load_manifest(path) if source.format == "shards" else None
    splits = [entry.split for entry in manifest.episodes] if manifest else split_of_episodes(len(source.lengths))
    count = len(source.lengths)
    numbers = np.linspace(0, count - 1, count if deep else min(count, SURVEYED_EPISODES)).round().astype(int).tolist()
    look = _look(source, numbers)
    alignment = (manifest and manifest.alignment) or look_at_alignment(source)
    lines = _summary(path, source, splits, manifest)
    lines += [f"alignment      {alignment.line}"] if alignment.line else []
    lines += [f"limit          {line}" for line in look.limits]
    if deep:
        lines += _deep_check(path, look, source, splits, manifest)
    if contact_sheet:
        lines.append(f"contact sheet  {_write_contact_sheet(source, splits, Path(contact_sheet))}")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Look:
    """What was found in the episodes that were read."""

    moments: list[np.ndarray]
    """The `action_moments` of each."""
    rewards: list[float]
    """Sum over each."""
    limits: list[str]
    """What can't be learnt from them."""


def _look(source: Source, numbers: Iterable[int]) -> _Look:
    """Read the episodes of these numbers, in order."""
    moments, rewards = [], []
    seen = FrameSurvey(source.image_size, sum(source.lengths))
    for number in numbers:
        episode = source.episode(number)
        moments.append(action_moments(episode.actions))
        rewards.append(float(episode.rewards.sum(dtype=np.float64)))
        seen.see(number, episode.observations)
    low, high = (np.stack([part[row] for part in moments]) for row in (3, 4))
    return _Look(moments, rewards, action_limits(low.min(0), high.max(0), seen.part) + seen.limits())


def _deep_check(path: Path, look: _Look, source: Source, splits: list[str], manifest: Manifest | None) -> list[str]:
    found = action_statistics(look.moments, splits)
    if manifest is not None:
        _verify_files(path)
        # They agree to the last of the six stored decimals.
        recorded = manifest.action_statistics
        if not all(np.allclose(found[name], recorded[name], rtol=0, atol=2e-6) for name in found):
            raise UserError(f"{path}: the manifest's action statistics are not those of the actions; pack it again")
    spread = (
        f"{min(look.rewards):.4g} to {max(look.rewards):.4g}, mean {np.mean(look.rewards):.4g}, sum over an episode"
    )
    return [
        *([] if manifest else _statistics_table(found)),
        f"rewards        {spread if source.has_rewards else 'not recorded'}",
        f"deep check     {sum(source.lengths)} frames read, all whole",
    ]


def _summary(path: Path, source: Source, splits: list[str], manifest: Manifest | None) -> list[str]:
    lines = [
        f"data           {path} ({source.format})",
        f"environment    {source.environment or 'not recorded'}",
        f"frames         {source.image_size}x{source.image_size}",
    ]
    for split in ("train", "val"):
        lengths = [length for length, own in zip(source.lengths, splits, strict=True) if own == split]
        span = f", {min(lengths)} to {max(lengths)} in an episode" if lengths else ""
        lines.append(f"{split:<14} {_count(len(lengths), 'episode')}, {_count(sum(lengths), 'frame')}{span}")
    lines.append(f"actions        {source.origin.line.removeprefix('actions ')}")
    lines += [f"note           {note}" for note in source.notes]
    if source.collection:
        lines += _provenance(source.collection)
    if source.states:
        lines.append(f"states         of the simulator, in {STATES}")
    if manifest:
        size = sum(shard.bytes for shard in manifest.shards) / 1e6
        seed = "the last episodes validate" if manifest.split_seed is None else f"split seed {manifest.split_seed}"
        codec = f"{manifest.codec} (lossy: {manifest.encoder})" if manifest.lossy else manifest.codec
        lines.append(f"shards         {len(manifest.shards)}, {size:.1f} MB, codec {codec}, {seed}")
        lines += _statistics_table(manifest.action_statistics)
    return lines


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("s" if number != 1 else "")


def _provenance(collection: dict[str, Any]) -> list[str]:
    """How episodes were recorded, in two lines. Fields that a later release adds are shown as well."""
    versions = collection.get("versions", {})
    shown = [key for key in collection if key not in ("environment", "length", "versions", STATE)]
    choices = [f"{key.replace('_', ' ')} {collection[key]}" for key in shown]
    used = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
    return [f"collected      {', '.join(choices)}", f"versions       {', '.join(used)}"]


def _statistics_table(statistics: dict[str, list[float]]) -> list[str]:
    lines = [f"{'action':>6}" + "".join(f"{name:>10}" for name in statistics)]
    for number, row in enumerate(zip(*statistics.values(), strict=True)):
        lines.append(f"{number:>6}" + "".join(f"{value:>10.4f}" for value in row))
    return lines


def _verify_files(folder: Path) -> None:
    """Compare every file with its sha256, and every member of every tar with the index."""
    manifest, readers = open_shards(folder)
    for shard, reader in zip(manifest.shards, readers, strict=True):
        index = reader.path.with_suffix(".idx")
        for file, wanted in ((reader.path, shard.sha256), (index, shard.index_sha256)):
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != wanted:
                raise UserError(f"{file}: damaged, or not the one of manifest.json (sha256); copy or pack it again")
        _verify_members(reader, index)


def _verify_members(reader: ShardReader, index: Path) -> None:
    listed = [line.split(" ") for line in index.read_text(encoding="utf-8").splitlines()[1:]]
    expected = [(row[i + 3], int(row[i + 1]), int(row[i + 2])) for row in listed for i in range(0, len(row), 4)]
    try:
        with tarfile.open(reader.path, "r:") as archive:
            members = [(member.name, member.offset_data, member.size) for member in archive]
    except tarfile.TarError as error:
        raise UserError(f"{reader.path}: not a whole tar file ({error}); copy or pack it again") from error
    if members != expected:
        raise UserError(f"{reader.path}: its members are not those of its index; copy or pack it again")


def _write_contact_sheet(source: Source, splits: list[str], path: Path) -> Path:
    if os.path.exists(path):
        raise UserError(f"{path}: exists already; choose another name for the contact sheet")
    rows = {}
    for (number, episode), split in zip(enumerate(source.read()), splits[:SHEET_ROWS], strict=False):
        picks = np.linspace(0, len(episode) - 1, SHEET_COLUMNS).round().astype(int)
        rows[f"{number} {split} {len(episode)}"] = episode.observations[picks]
    names = [f"{share:.0%}" for share in np.linspace(0, 1, SHEET_COLUMNS)]
    shown = f"{len(rows)} of {_count(len(source.lengths), 'episode')}"
    title = f"{source.environment or source.where}: {shown}, each with its number, split and length in frames"
    try:
        save_rows(path, rows, title, names)
    except OSError as error:
        raise UserError(f"{path}: the contact sheet cannot be written ({error}); choose another place") from error
    return path
