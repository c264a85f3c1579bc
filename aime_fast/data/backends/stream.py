"""Streaming: shards read from front to back, windows shuffled in blocks, one block ahead."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.backend import Backend, MemoryBackend
from aime_fast.data.batch import Batch
from aime_fast.data.shards.chunks import window_parts
from aime_fast.data.store import open_episodes, open_store
from aime_fast.data.streaming.block import Block, Piece
from aime_fast.data.streaming.order import Pass, StreamOrder
from aime_fast.data.streaming.reader import ReadMembers, Shards, StreamedChunk
from aime_fast.data.survey import FrameSurvey, Survey, action_limits
from aime_fast.data.windows import rank_part
from aime_fast.errors import UserError

BLOCK_FRAMES = 4096
"""Number of frames of the windows that are shuffled together: 50 MB decoded at 64x64."""

Row = tuple[Block, int]
"""A window: its block, and its row there."""


class StreamBackend(Backend):
    """The training split, in the order of a `StreamOrder`; each chunk is decoded by Pillow as it is read.

    (seed, step, rank, number of processes) determine a batch. Steps should be taken in order. A jump, as on resuming,
    is computed from the manifest alone; reading then starts at the shard where the block begins.
    """

    decodes = True
    """Whether blocks hold decoded frames instead of chunks."""

    def __init__(self, shards: Shards, read: ReadMembers, config: LoaderConfig, seed: int, description: str) -> None:
        """`UserError` if the split has no episode as long as a window."""
        self.manifest = shards.manifest
        self._entries = self.manifest.entries("train", shards.place)
        lengths = [entry.length for entry in self._entries]
        # The sampler only decides how long an epoch is.
        super().__init__(self.manifest, lengths, config, seed, description)
        shards_of, block = [entry.shard for entry in self._entries], max(BLOCK_FRAMES // config.sequence_length, 1)
        self.order = StreamOrder(lengths, shards_of, len(self.manifest.shards), config.sequence_length, block, seed)
        self.shards, self._read = shards, read
        self._config, self._seed = config, seed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")
        self._rank = (0, 1)
        self._blocks: dict[int, Future[Block]] = {}
        self._spare: list[np.ndarray] = []
        """Frames of blocks that are no longer used."""
        self._reading: tuple[tuple[int, tuple[int, int]], Iterator[list[Piece]]] | None = None

    def action_range(self) -> tuple[list[float], list[float]]:
        """Least and largest value of each number of an action in the split, as the manifest has it."""
        return self.manifest.action_statistics["min"], self.manifest.action_statistics["max"]

    def survey(self) -> Survey:
        """The mean of many frames, and what can't be learnt. Of a pipe, the windows of the first block are read."""
        if not self.shards.piped:
            return open_episodes(self.shards.place, "train", self.shards.skips).survey()
        self.turn_to((0, 1))
        self._read_ahead(0, 0)
        block = self._blocks[0].result()
        rows = [row for row in block.order if not block.is_damaged(row)]
        seen = FrameSurvey(self.image_size, sum(entry.length for entry in self._entries))
        for row, frames in zip(rows, self.frames([(block, row) for row in rows]).numpy(), strict=True):
            seen.see(row, frames)
        actions = block.columns[0][rows]
        limits = action_limits(actions.min((0, 1)), actions.max((0, 1)), seen.part) + seen.limits()
        return Survey(seen.mean_frame(), seen.total, limits)

    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every window that starts at a multiple of `stride` once, in order, read by the exact `memory` back-end."""
        store = open_store(self.shards.place, "train", self.shards.skips)
        return MemoryBackend(store, self._config, self._seed, "").evaluation_windows(stride)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`."""
        self.turn_to((rank, world_size))
        rows = self.windows(step)
        return self.assemble(self.frames(rows), rows)

    def windows(self, step: int) -> list[Row]:
        """The windows of a batch of this rank; one that touches damage is replaced by the next of its block without."""
        start, stop = rank_part(self.sampler.batch_size, *self._rank)
        numbers = range(step * (stop - start), (step + 1) * (stop - start))
        wanted = [divmod(number, self.order.block) for number in numbers]
        self._read_ahead(wanted[0][0], wanted[-1][0])
        return [self._sound(self._blocks[block].result(), place) for block, place in wanted]

    def frames(self, rows: list[Row]) -> Tensor:
        """Frames uint8 [b,T,S,S,3] of windows of decoded blocks."""
        return torch.from_numpy(np.stack([block.frames[row] for block, row in rows if block.frames is not None]))

    def assemble(self, frames: Tensor, rows: list[Row]) -> Batch:
        """The batch of these frames with the windows' other columns."""
        columns = map(np.stack, zip(*([column[row] for column in block.columns] for block, row in rows), strict=True))
        return Batch(frames, *map(torch.from_numpy, columns))

    def turn_to(self, rank: tuple[int, int]) -> bool:
        """Read for another (rank, number of processes) from now on; whether that is a change."""
        if rank == self._rank:
            return False
        self._rank = rank
        for block in self._blocks.values():
            block.cancel()
        self._blocks.clear()
        return True

    def _sound(self, block: Block, place: int) -> Row:
        """The window at this place of a block's order, or the next sound one."""
        size = len(block.order)
        for shift in range(size):
            row = block.order[(place + shift) % size]
            if not block.is_damaged(row):
                self.skipped += shift
                return block, row
        raise UserError(f"{self.shards.place}: {size} windows in a row touch damaged chunks; pack it again")

    def _read_ahead(self, first: int, last: int) -> None:
        """Start to read the blocks `first` to `last` and the next one; drop all others."""
        wanted = range(first, last + 2)
        for number in [number for number in self._blocks if number not in wanted]:
            block = self._blocks.pop(number)
            if not block.done() or block.exception():
                block.cancel()
            elif (frames := block.result().frames) is not None:
                self._spare.append(frames)
        for number in wanted:
            if number not in self._blocks:
                self._blocks[number] = self._thread.submit(self._read_block, number, self._rank)

    def _read_block(self, number: int, rank: tuple[int, int]) -> Block:
        if self._reading is None or self._reading[0] != (number, rank):
            self._reading = (number, rank), self._stream(number * self.order.block, rank)
        stream = self._reading[1]
        self._reading = None  # stays so after an error
        frames = None
        if self.decodes:
            shape = (self.order.block, self.sequence_length, self.image_size, self.image_size, 3)
            frames = self._spare.pop() if self._spare else np.empty(shape, np.uint8)
        block = Block(self.order.shuffled(number, *rank), self.sequence_length, self.action_dim, frames)
        for pieces in islice(stream, self.order.block):
            block.put(pieces, self.shards)
        self._reading = (number + 1, rank), stream
        return block

    def _stream(self, window: int, rank: tuple[int, int]) -> Iterator[list[Piece]]:
        """A rank's windows in reading order, without end, from its window number `window` on."""
        number, skip = self.order.find(window, *rank)
        while True:
            yield from self._read_pass(self.order.pass_of(number, *rank), skip)
            number, skip = number + 1, 0

    def _read_pass(self, plan: Pass, skip: int) -> Iterator[list[Piece]]:
        """The windows of a pass without the first `skip`."""
        if skip >= len(plan):
            return
        first = int(np.searchsorted(plan.ends, skip, side="right"))
        chunks = self.shards.chunks(self._read, plan.shards[np.unique(plan.place[first:])].tolist())
        for place in range(first, len(plan.episodes)):
            before = int(plan.ends[place - 1]) if place else 0
            starts = plan.offsets[place] + self.sequence_length * np.arange(plan.ends[place] - before)
            entry = self._entries[plan.episodes[place]]
            held: dict[int, StreamedChunk] = {}
            for start in starts[max(skip - before, 0) :].tolist():
                parts = window_parts(start, self.sequence_length)
                touched = [number for number, _, _ in parts]
                while touched[-1] not in held:
                    chunk = next(chunks)
                    if chunk.entry.id == entry.id and chunk.number in touched:
                        held[chunk.number] = chunk
                yield [(held[number], frame, count) for number, frame, count in parts]
                held = {touched[-1]: held[touched[-1]]}
