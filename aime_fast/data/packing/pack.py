"""From any recording to a folder of shards."""

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from aime_fast.data.alignment import BLOCK, MOST_ROWS, Alignment, check_alignment
from aime_fast.data.episode import Episode
from aime_fast.data.packing.workers import Tick, Work, WorkerPool
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.manifest import CHUNK_LENGTH, MANIFEST_NAME, Manifest, action_statistics, split_of_episodes
from aime_fast.data.shards.states import STATE, write_states
from aime_fast.data.shards.writer import WrittenShard, write_shard
from aime_fast.data.sources import Source, open_source
from aime_fast.data.sources.source import VIDEO_TOLERANCE
from aime_fast.errors import UserError, check_at_least, unknown_name

Task = tuple[int, range]
"""Number of a shard, and its episodes."""


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
    last_of_stack: bool = False,
    video_tolerance: float = VIDEO_TOLERANCE,
    actions: str | None = None,
    workers: int = 1,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Write the episodes of `source` as shards into the new folder `out`, and return `out`.

    `source`, `format`, `camera`, `size`, `last_of_stack`, `video_tolerance` and `actions` are those of `open_source`,
    `val_episodes` and `seed` of `split_of_episodes`. `codec` is `raw` (mapped into memory), `png` (lossless, about a
    sixth of the size) or `jpg` (lossy, faster to decode). `environment` names the task if the source does not. More
    than one of `workers` needs a main module that can be imported. `report` gets a line for the format that was found
    and for each change.

    The folder appears when it is complete. An `out` with files is only replaced with `force`, and only if it holds
    shards. The same source and choices give the same bytes for any `workers`. `UserError` for bad sources, choices and
    targets; nothing is left behind then.
    """
    source, out = Path(source), Path(out).resolve()
    if codec not in CODECS:
        raise unknown_name("codec", codec, CODECS)
    check_at_least(1, chunks_per_shard=chunks_per_shard, workers=workers)
    _clear_leftovers(out)
    check_target(out, force)
    recording = open_source(source, format, camera, size, last_of_stack, video_tolerance, actions)
    if report:
        found = f"{source}: {recording.format}, {len(recording.lengths)} episodes"
        for line in (found, recording.origin.line, *recording.notes):
            report(line)
    if environment and recording.environment and environment != recording.environment:
        raise UserError(f"{source}: was recorded in {recording.environment}, not in {environment}; leave the name out")
    recording = replace(recording, environment=environment or recording.environment)
    splits = split_of_episodes(len(recording.lengths), val_episodes, seed)
    alignment = look_at_alignment(recording)
    if report and alignment.line:
        report(alignment.line)
    if report and "val" not in splits:
        report("no episode is held out, so a run has no validation and `evaluate` needs other data; record two or more")
    progress = report is not None
    write_folder(recording, out, splits, seed, codec, chunks_per_shard, workers, progress, alignment)
    return out


def look_at_alignment(recording: Source) -> Alignment:
    """`check_alignment` of evenly spaced episodes of a recording, as many as it takes frames of."""
    numbers = range(len(recording.lengths))
    mean = max(sum(recording.lengths) // len(numbers), 1)
    chosen = numbers[:: max(1, len(numbers) * mean // MOST_ROWS)]
    episodes = (recording.episode(number) for number in chosen if recording.lengths[number] > BLOCK)
    return check_alignment((episode.observations, episode.actions) for episode in episodes)


def write_folder(
    recording: Source,
    out: Path,
    splits: list[str],
    split_seed: int | None = None,
    codec: str = "raw",
    chunks_per_shard: int = 1024,
    workers: int = 1,
    progress: bool = False,
    alignment: Alignment | None = None,
) -> None:
    """Write the episodes of `recording`, each in its split, as the folder `out`, which appears complete or not at all.

    Shards that are there are replaced, so call `check_target` first. `progress` shows a bar of frames where standard
    error is a terminal. `UserError` if it cannot be written.
    """
    folder = out.with_name(f"{_working_name(out)}-{os.getpid()}")
    action_dim = recording.episode(0).action_dim
    try:
        folder.mkdir(parents=True)
        write = partial(_write_shard, replace(recording, states=None), folder, codec, splits, action_dim)
        tasks = list(enumerate(shard_spans(recording.lengths, chunks_per_shard)))
        with tqdm(total=sum(recording.lengths), unit="frame", disable=None if progress else True) as bar:
            packed = _write_shards(write, tasks, min(workers, len(tasks)), bar.update)
        Manifest(
            environment=recording.environment,
            codec=codec,
            lossy=CODECS[codec].lossy,
            encoder=CODECS[codec].encoder,
            image_size=recording.image_size,
            action_dim=action_dim,
            action_statistics=action_statistics([moments for *_, part in packed for moments in part], splits),
            split_seed=split_seed,
            notes=list(recording.notes),
            collection=_collection(recording, folder),
            shards=[shard for shard, _, _ in packed],
            episodes=[entry for _, entries, _ in packed for entry in entries],
            has_rewards=recording.has_rewards,
            origin=recording.origin,
            alignment=alignment,
        ).save(folder)
        _move_into_place(folder, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); make room or choose another folder") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _collection(recording: Source, folder: Path) -> dict[str, Any] | None:
    """How the episodes were recorded, with the simulator's states as a file in `folder` if they are still known."""
    if not recording.collection or STATE not in recording.collection:
        return recording.collection
    collection = dict(recording.collection)
    layout = collection.pop(STATE)
    if recording.states:
        checksum = write_states(folder, map(recording.states, range(len(recording.lengths))))
        collection[STATE] = {**layout, "sha256": checksum}
    return collection


def shard_spans(lengths: Sequence[int], chunks_per_shard: int) -> list[range]:
    """Episodes of each shard, in order: as many as it takes to reach `chunks_per_shard` chunks."""
    spans, first, chunks = [], 0, 0
    for number, length in enumerate(lengths):
        chunks += -(-length // CHUNK_LENGTH)
        if chunks >= chunks_per_shard or number == len(lengths) - 1:
            spans.append(range(first, number + 1))
            first, chunks = number + 1, 0
    return spans


def _write_shards(write: Work[Task, WrittenShard], tasks: list[Task], workers: int, tick: Tick) -> list[WrittenShard]:
    """Write all shards. The bytes do not depend on `workers`. `UserError` of the first shard that fails."""
    if workers == 1:
        return [write(task, tick) for task in tasks]
    packed: dict[int, WrittenShard] = {}
    advice = "memory may be short: use fewer --workers"
    with WorkerPool[None, Task, WrittenShard](workers, _start, (write,), advice) as pool:
        for frames, number, result in pool.run(tasks):
            tick(frames)
            if number is not None and result is not None:
                packed[number] = result
    return [packed[number] for number, _ in tasks]


def _start(write: Work[Task, WrittenShard]) -> tuple[None, Work[Task, WrittenShard]]:
    return None, write


def _write_shard(
    recording: Source, folder: Path, codec: str, splits: list[str], action_dim: int, task: Task, tick: Tick
) -> WrittenShard:
    """Write one shard, with one episode in memory."""
    number, span = task

    def episodes() -> Iterator[tuple[int, Episode, str]]:
        for place in span:
            episode = recording.checked(place, action_dim)
            yield place, episode, splits[place]
            tick(len(episode))

    return write_shard(folder, number, CODECS[codec], episodes())


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
    """Remove what killed processes of this machine left beside `out`; old shards that they set aside are moved back."""
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
