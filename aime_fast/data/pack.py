"""From any recording to a folder of shards."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from aime_fast.data.codecs import CODECS, Codec
from aime_fast.data.episode import Episode
from aime_fast.data.manifest import MANIFEST_NAME, ActionStatistics, Manifest, split_of_episodes
from aime_fast.data.shard_reader import open_shards
from aime_fast.data.shards import ShardWriter
from aime_fast.data.sources import Source, open_source
from aime_fast.errors import UserError


def pack(
    source: str | Path,
    out: str | Path,
    *,
    codec: str = "raw",
    val_episodes: int | None = None,
    seed: int | None = None,
    environment: str | None = None,
    force: bool = False,
    strips_per_shard: int = 1024,
) -> Path:
    """Write the episodes of `source` as shards into the new folder `out`, and return `out`.

    `source` is an HDF5 or `.pt` recording or a folder of shards; one episode is in memory at a time. `codec` is `raw`
    (mapped straight into memory) or `png` (lossless, about a fifth of the size). `val_episodes` (None: a fifth, at
    least one) are kept for validation: the last ones, or drawn by `seed`. `environment` names the task where the
    source does not.

    The folder is written under another name beside `out` and renamed when whole. An `out` with files in it is only
    replaced with `force`, and only when it holds shards. The same source and choices give the same bytes.
    `UserError` for bad sources, choices and targets; nothing is left behind then.
    """
    source, out = Path(source), Path(out).resolve()
    if codec not in CODECS:
        raise UserError(f"unknown codec {codec!r}; choose one of {', '.join(CODECS)}")
    if strips_per_shard < 1:
        raise UserError(f"strips_per_shard is {strips_per_shard}; it must be at least 1")
    check_target(out, force)
    recording = shards_as_source(source) if os.path.isdir(source) else open_source(source)
    if environment and recording.environment and environment != recording.environment:
        raise UserError(f"{source}: was recorded in {recording.environment}, not in {environment}; leave the name out")
    recording = replace(recording, environment=environment or recording.environment)
    splits = split_of_episodes(len(recording.lengths), val_episodes, seed)
    write_shards(recording, out, splits=splits, split_seed=seed, codec=codec, strips_per_shard=strips_per_shard)
    return out


def write_shards(
    recording: Source,
    out: Path,
    *,
    splits: list[str],
    split_seed: int | None = None,
    codec: str = "raw",
    strips_per_shard: int = 1024,
) -> None:
    """Write the episodes of `recording`, each in its split, as the folder `out`, which appears whole or not at all.

    Shards that are there are replaced: `check_target` comes first. `UserError` when it cannot be written.
    """
    folder = out.with_name(f".{out.name}.packing-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        manifest = _write_episodes(recording, folder, CODECS[codec], splits, strips_per_shard)
        replace(manifest, split_seed=split_seed).save(folder)
        _move_into_place(folder, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); make room or choose another folder") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_episodes(
    recording: Source, folder: Path, codec: Codec, splits: list[str], strips_per_shard: int
) -> Manifest:
    """Write every episode into `folder`; the manifest of what was written, but for the split's seed."""
    statistics = ActionStatistics()
    entries = []
    with ShardWriter(folder, codec, strips_per_shard) as writer:
        for episode, split in zip(recording.read(), splits, strict=True):
            if episode.action_dim != (statistics.action_dim or episode.action_dim):
                raise UserError(
                    f"{episode.name}: actions of {episode.action_dim} numbers after {statistics.action_dim}; "
                    "pack the tasks apart"
                )
            entries.append(writer.add(episode, split))
            statistics.add(episode)
    return Manifest(
        environment=recording.environment,
        collection=recording.collection,
        codec=codec.name,
        encoder=codec.encoder,
        action_dim=statistics.action_dim,
        action_statistics=statistics.over([split == "train" for split in splits]),
        split_seed=None,
        shards=writer.shards,
        episodes=entries,
    )


def shards_as_source(folder: Path) -> Source:
    """A folder of shards as a recording, to pack it again with other choices."""
    manifest, readers = open_shards(folder)

    def read() -> Iterator[Episode]:
        for entry in manifest.episodes:
            reader = readers[entry.shard]
            strips = list(reader.strips(entry))
            yield Episode(
                observations=np.concatenate([reader.pixels(strip) for strip in strips]),
                actions=np.concatenate([strip.actions for strip in strips]),
                rewards=np.concatenate([strip.rewards for strip in strips]),
                terminated=np.concatenate([strip.terminated for strip in strips]),
                truncated=np.concatenate([strip.truncated for strip in strips]),
                name=f"{folder}, episode {entry.id}",
            )

    lengths = [entry.length for entry in manifest.episodes]
    return Source(str(folder), manifest.environment, lengths, read, manifest.collection)


def check_target(out: Path, force: bool) -> None:
    """Raise `UserError` unless `out` is free, or holds shards and `force` allows to replace them."""
    if not os.path.exists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError(f"{out}: exists already; choose another folder, or --force to replace it")
    if not (out / MANIFEST_NAME).is_file():
        raise UserError(f"{out}: is not a folder of shards, so it is not replaced; choose another folder")


def _move_into_place(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`; shards that were there are set aside first and deleted last."""
    old = out.with_name(f"{folder.name}-old")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)
