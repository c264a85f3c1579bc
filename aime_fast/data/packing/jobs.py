"""The work of packing, cut into shards that processes write independently of one another."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aime_fast.data.episode import Episode
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.manifest import STRIP_LENGTH, ActionStatistics, EpisodeEntry, ShardEntry
from aime_fast.data.shards.writer import ShardWriter
from aime_fast.data.sources.source import Source
from aime_fast.errors import UserError

Packed = tuple[list[ShardEntry], list[EpisodeEntry], ActionStatistics]
"""What became of consecutive episodes: their shards, their rows of the manifest, and their actions."""


@dataclass(frozen=True)
class ShardJob:
    """What every shard of one `pack` has in common; it can be sent to another process."""

    source: Source
    folder: Path
    codec: str
    splits: list[str]
    action_dim: int


def shard_spans(lengths: Sequence[int], strips_per_shard: int) -> list[range]:
    """Episodes of each shard: as many as it takes to reach `strips_per_shard` strips, in order."""
    spans, first, strips = [], 0, 0
    for number, length in enumerate(lengths):
        strips += -(-length // STRIP_LENGTH)
        if strips >= strips_per_shard or number == len(lengths) - 1:
            spans.append(range(first, number + 1))
            first, strips = number + 1, 0
    return spans


def write_shards(job: ShardJob, spans: list[range], workers: int, progress: bool) -> Packed:
    """Write shard `i` with the episodes `spans[i]`, by up to `workers` processes; the same bytes for any number.

    `progress` shows a bar of frames where standard error is a terminal. `UserError` of the first shard that fails.
    """
    with tqdm(total=sum(job.source.lengths), unit="frame", disable=None if progress else True) as bar:
        if min(workers, len(spans)) == 1:
            packed = [_write_shard(job, number, span, bar.update) for number, span in enumerate(spans)]
        else:
            packed = _write_in_processes(job, spans, min(workers, len(spans)), bar)
    statistics = ActionStatistics()
    for _, _, part in packed:
        statistics.extend(part)
    return [s for shards, _, _ in packed for s in shards], [e for _, rows, _ in packed for e in rows], statistics


def _write_shard(job: ShardJob, number: int, span: range, done: Callable[[int], object]) -> Packed:
    """Write one shard, an episode at a time; `done` is called with the frames of each."""
    statistics, entries = ActionStatistics(), []
    with ShardWriter(job.folder, CODECS[job.codec], number) as writer:
        for place in span:
            episode = job.source.episode(place)
            _check(episode, job.source.lengths[place], job.action_dim)
            entries.append(writer.add(episode, place, job.splits[place]))
            statistics.add(episode)
            done(len(episode))
    return [writer.entry], entries, statistics


def _check(episode: Episode, length: int, action_dim: int) -> None:
    if episode.action_dim != action_dim:
        raise UserError(
            f"{episode.name}: actions of {episode.action_dim} numbers after {action_dim}; pack the tasks apart"
        )
    if len(episode) != length:
        raise UserError(f"{episode.name}: {len(episode)} frames where the recording lists {length}; mend the recording")


def _write_in_processes(job: ShardJob, spans: list[range], workers: int, bar: tqdm) -> list[Packed]:
    # Not fork: threads of the libraries that read recordings do not survive it.
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (job, done, stop)) as pool:
        try:
            futures = [pool.submit(_work, number, span) for number, span in enumerate(spans)]
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(done.value - bar.n)
                for future in finished:
                    future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError("a worker process was killed, perhaps for memory; use fewer --workers") from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class _Stopped(Exception):
    """Another shard failed, or the person gave up: this one is not wanted any more."""


_worker: dict[str, Any] = {}


def _start_worker(job: ShardJob, done: Any, stop: Any) -> None:
    _worker.update(job=job, done=done, stop=stop)
    # Ctrl-C reaches every process of a terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers, which would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(number: int, span: range) -> Packed:
    def done(frames: int) -> None:
        with _worker["done"].get_lock():
            _worker["done"].value += frames
        if _worker["stop"].is_set():
            raise _Stopped

    return _write_shard(_worker["job"], number, span, done)
