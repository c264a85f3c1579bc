"""The work of packing, divided into shards that processes write independently."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from aime_fast.data.packing.workers import Tick, Work, WorkerPool
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.manifest import CHUNK_LENGTH, EpisodeEntry, ShardEntry, action_moments
from aime_fast.data.shards.writer import ShardWriter
from aime_fast.data.sources.source import Source

Packed = tuple[list[ShardEntry], list[EpisodeEntry], list[np.ndarray]]
"""Written shards, the entries of their episodes, and the `action_moments` of each episode."""


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


def write_shards(job: ShardJob, spans: list[range], workers: int, progress: bool) -> Packed:
    """Write shard `i` with the episodes `spans[i]`. The bytes do not depend on the number of `workers`.

    `progress` shows a bar of frames where standard error is a terminal. `UserError` of the first shard that fails.
    """
    tasks = list(enumerate(spans))
    packed: dict[int, Packed] = {}
    with tqdm(total=sum(job.source.lengths), unit="frame", disable=None if progress else True) as bar:
        if min(workers, len(spans)) == 1:
            packed = {number: _write_shard(job, (number, span), bar.update) for number, span in tasks}
        else:
            advice = "memory may be short: use fewer --workers"
            pool = WorkerPool[None, tuple[int, range], Packed](min(workers, len(spans)), _start, (job,), advice)
            with pool:
                for frames, number, result in pool.run(tasks):
                    bar.update(frames)
                    if number is not None and result is not None:
                        packed[number] = result
    ordered = [packed[number] for number, _ in tasks]
    entries, moments = [e for _, rows, _ in ordered for e in rows], [m for _, _, part in ordered for m in part]
    return [shard for shards, _, _ in ordered for shard in shards], entries, moments


def _start(job: ShardJob) -> tuple[None, Work[tuple[int, range], Packed]]:
    return None, partial(_write_shard, job)


def _write_shard(job: ShardJob, task: tuple[int, range], tick: Tick) -> Packed:
    """Write one shard, with one episode in memory."""
    number, span = task
    moments, entries = [], []
    with ShardWriter(job.folder, CODECS[job.codec], number) as writer:
        for place in span:
            episode = job.source.checked(place, job.action_dim)
            entries.append(writer.add(episode, place, job.splits[place]))
            moments.append(action_moments(episode.actions))
            tick(len(episode))
    return [writer.entry], entries, moments
