"""From any recording to a folder of shards."""

import contextlib
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from aime_fast.data.packing.jobs import ShardJob, shard_spans, write_shards
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.manifest import MANIFEST_NAME, Manifest, action_statistics, split_of_episodes
from aime_fast.data.sources import Source, open_source
from aime_fast.errors import UserError, unknown_name


def pack(
    source: str | Path,
    out: str | Path,
    *,
    codec: str = "raw",
    val_episodes: int | None = None,
    seed: int | None = None,
    environment: str | None = None,
    force: bool = False,
    chunks_per_shard: int = 1024,
    format: str | None = None,
    camera: str | None = None,
    size: int | None = None,
    workers: int = 1,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Write the episodes of `source` as shards into the new folder `out`, and return `out`.

    `source`, `format`, `camera` and `size` are those of `open_source`. `codec` is `raw` (mapped into memory), `png`
    (lossless, about a sixth of the size) or `jpg` (lossy, faster to decode). `val_episodes` (None: a fifth, at least
    one) are for validation: the last ones, or drawn with `seed`. `environment` names the task if the source does not.
    Each of `workers` processes writes a shard, with one episode in memory; more than one needs a main module that can
    be imported. `report` gets a line for the format that was found and for each change.

    The folder appears when it is complete. An `out` with files is only replaced with `force`, and only if it holds
    shards. The same source and choices give the same bytes for any `workers`. `UserError` for bad sources, choices and
    targets; nothing is left behind then.
    """
    source, out = Path(source), Path(out).resolve()
    if codec not in CODECS:
        raise unknown_name("codec", codec, CODECS)
    for name, value in (("chunks_per_shard", chunks_per_shard), ("workers", workers)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    _clear_leftovers(out)
    check_target(out, force)
    recording = open_source(source, format, camera, size)
    if report:
        for line in (f"{source}: {recording.format}, {len(recording.lengths)} episodes", *recording.notes):
            report(line)
    if environment and recording.environment and environment != recording.environment:
        raise UserError(f"{source}: was recorded in {recording.environment}, not in {environment}; leave the name out")
    recording = replace(recording, environment=environment or recording.environment)
    splits = split_of_episodes(len(recording.lengths), val_episodes, seed)
    write_folder(recording, out, splits, seed, codec, chunks_per_shard, workers, progress=report is not None)
    return out


def write_folder(
    recording: Source,
    out: Path,
    splits: list[str],
    split_seed: int | None = None,
    codec: str = "raw",
    chunks_per_shard: int = 1024,
    workers: int = 1,
    progress: bool = False,
) -> None:
    """Write the episodes of `recording`, each in its split, as the folder `out`, which appears complete or not at all.

    Shards that are there are replaced, so call `check_target` first. `UserError` if it cannot be written.
    """
    folder = out.with_name(f"{_working_name(out)}-{os.getpid()}")
    action_dim = recording.episode(0).action_dim
    try:
        folder.mkdir(parents=True)
        job = ShardJob(recording, folder, codec, splits, action_dim)
        spans = shard_spans(recording.lengths, chunks_per_shard)
        shards, episodes, moments = write_shards(job, spans, workers, progress)
        Manifest(
            environment=recording.environment,
            codec=codec,
            lossy=CODECS[codec].lossy,
            encoder=CODECS[codec].encoder,
            image_size=recording.image_size,
            action_dim=action_dim,
            action_statistics=action_statistics(moments, splits),
            split_seed=split_seed,
            notes=list(recording.notes),
            collection=recording.collection,
            shards=shards,
            episodes=episodes,
            has_rewards=recording.has_rewards,
        ).save(folder)
        _move_into_place(folder, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); make room or choose another folder") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_target(out: Path, force: bool) -> None:
    """Raise `UserError` unless `out` is free, or holds shards and `force` allows to replace them."""
    if not os.path.exists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError(f"{out}: exists already; choose another folder, or --force to replace it")
    if not (out / MANIFEST_NAME).is_file():
        raise UserError(f"{out}: is not a folder of shards, so it is not replaced; choose another folder")


def _working_name(out: Path) -> str:
    return f".{out.name}.packing-{platform.node()}"


def _clear_leftovers(out: Path) -> None:
    """Remove what killed processes of this machine left beside `out`.

    A process that was killed between its two renames had moved the old shards aside: they are moved back.
    """
    with contextlib.suppress(OSError):
        for path in sorted(out.parent.glob(f"{_working_name(out)}-*")):
            pid = path.name.removeprefix(f"{_working_name(out)}-").removesuffix("-old")
            if not pid.isdecimal() or psutil.pid_exists(int(pid)):
                continue
            if path.name.endswith("-old") and not out.exists():
                path.rename(out)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _move_into_place(folder: Path, out: Path) -> None:
    """Rename `folder` to `out`. Shards that were there are moved aside first and deleted last."""
    old = out.with_name(f"{folder.name}-old")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)
