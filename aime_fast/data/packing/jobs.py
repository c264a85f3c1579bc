"""The work of packing, divided into shards that processes write independently."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from aime_fast.data.packing.workers import Tick, Work, WorkerPool
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.manifest import CHUNK_LENGTH, ActionStatistics, EpisodeEntry, ShardEntry
from aime_fast.data.shards.writer import ShardWriter
from aime_fast.data.sources.source import Source

Packed = tuple[ShardEntry, list[EpisodeEntry], ActionStatistics]
"""One written shard, the entries of its episodes, and their actions."""


@dataclass(frozen=True)
class ShardJob:
    """What all shards of one `pack` have in common. It can be sent to another process."""

    source: Source
    folder: Path
    codec: str
    splits: list[str]
    action_dim: int


def shard_spans(lengths: Sequence[int], chunks_per_shard: int) -> list[range]:
    """Episodes of each shard, in order: as many as it takes to reach `chunks_per_shard` chunks."""
    spans, first, chunks = [], 0, 0
    for number, length in enumerate(lengths):
        chunks += -(-length // CHUNK_LENGTH)
        if chunks >= chunks_per_shard or number == len(lengths) - 1:
            spans.append(range(first, number + 1))
            first, chunks = number + 1, 0
    return spans


def write_shards(
    job: ShardJob, spans: list[range], workers: int, progress: bool
) -> tuple[list[ShardEntry], list[EpisodeEntry], ActionStatistics]:
    """Write shard `i` with the episodes `spans[i]`. The bytes do not depend on the number of `workers`.

    `progress` shows a bar of frames where standard error is a terminal. `UserError` of the first shard that fails.
    """
    tasks = list(enumerate(spans))
    packed: list[Packed | None] = [None] * len(spans)
    with tqdm(total=sum(job.source.lengths), unit="frame", disable=None if progress else True) as bar:
        if min(workers, len(spans)) == 1:
            packed = [_write_shard(job, task, bar.update) for task in tasks]
        else:
            advice = "memory may be short: use fewer --workers"
            pool = WorkerPool[None, tuple[int, range], Packed](min(workers, len(spans)), _start, (job,), advice)
            with pool:
                for frames, number, result in pool.run(tasks):
                    bar.update(frames)
                    if number is not None:
                        packed[number] = result
    shards, entries, statistics = [], [], ActionStatistics()
    for shard, rows, part in filter(None, packed):
        shards.append(shard)
        entries += rows
        statistics.extend(part)
    return shards, entries, statistics


def _start(job: ShardJob) -> tuple[None, Work[tuple[int, range], Packed]]:
    return None, partial(_write_shard, job)


def _write_shard(job: ShardJob, task: tuple[int, range], tick: Tick) -> Packed:
    """Write one shard, with one episode in memory."""
    number, span = task
    statistics, entries = ActionStatistics(), []
    with ShardWriter(job.folder, CODECS[job.codec], number) as writer:
        for place in span:
            episode = job.source.checked(place, job.action_dim)
            entries.append(writer.add(episode, place, job.splits[place]))
            statistics.add(episode)
            tick(len(episode))
    return writer.entry, entries, statistics
