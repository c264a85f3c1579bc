"""What the sequential back-ends share: shards read from front to back, windows shuffled in blocks, one block ahead."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.memory import MemoryBackend
from aime_fast.data.batch import Batch
from aime_fast.data.shards.manifest import STRIP_LENGTH, Manifest
from aime_fast.data.store import check_split, open_episodes, open_store
from aime_fast.data.streaming.block import Block, FrameBlock, Piece
from aime_fast.data.streaming.order import Pass, StreamOrder
from aime_fast.data.streaming.reader import ReadMembers, Shards, StreamedStrip
from aime_fast.data.windows import WindowSampler, rank_part
from aime_fast.errors import UserError

BLOCK_FRAMES = 4096
"""Frames of the windows that are shuffled among themselves: 50 MB decoded."""

Row = tuple[Block, int]
"""A window: its block, and its row there."""


class StreamBackend:
    """Windows in the order of a `StreamOrder`.

    A batch is decided by (seed, step, rank, number of processes). Steps are meant to be taken in order; a jump, as on
    resuming, is worked out from the manifest alone, and reading starts at the shard where the block begins.
    """

    def __init__(
        self,
        shards: Shards,
        read: ReadMembers,
        config: LoaderConfig,
        split: str,
        seed: int,
        description: str,
    ) -> None:
        """`UserError` when the split has no episode as long as a window."""
        manifest = shards.manifest
        check_split([entry.split for entry in manifest.episodes], split, shards.place)
        self._entries = [entry for entry in manifest.episodes if split in (entry.split, "all")]
        self.sampler = WindowSampler(
            [entry.length for entry in self._entries],
            config.sequence_length,
            config.batch_size,
            seed,
            config.window_stride,
            config.windows_per_epoch,
        )
        """Says how long an epoch is; the order is the stream's own."""
        self.order = StreamOrder(
            [entry.length for entry in self._entries],
            [entry.shard for entry in self._entries],
            len(manifest.shards),
            config.sequence_length,
            max(BLOCK_FRAMES // config.sequence_length, 1),
            seed,
        )
        self.description = description
        """One line: how the data is read, and why so."""
        self.skipped = 0
        """Windows replaced by the next one because a strip of theirs is damaged."""
        self.sequence_length = config.sequence_length
        self.shards, self._read = shards, read
        self._config, self._split, self._seed = config, split, seed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")
        self._rank = (0, 1)
        self._blocks: dict[int, Future[Block]] = {}
        self._spare: list[np.ndarray] = []
        """Frames of blocks that are done with."""
        self._reading: tuple[tuple[int, tuple[int, int]], Iterator[list[Piece]]] | None = None

    @property
    def manifest(self) -> Manifest:
        """What the shards hold."""
        return self.shards.manifest

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return self.sampler.steps_per_epoch

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""
        return self.manifest.action_dim

    @property
    def environment(self) -> str | None:
        """Task that was recorded, where the data says so."""
        return self.manifest.environment

    def mean_frame(self) -> Tensor:
        """Mean of many of the split's frames: float32 [3, 64, 64] in [-1, 1].

        Evenly spread over a folder of shards, as for the other back-ends; of a pipe, of the first block's windows.
        """
        if not self.shards.piped:
            return open_episodes(self.shards.place, self._split, self.shards.skips).mean_frame()
        self.turn_to((0, 1))
        self._read_ahead(0, 0)
        block = self._blocks[0].result()
        frames = self.frames([(block, row) for row in block.order if not block.is_damaged(row)])
        mean = frames.sum((0, 1), dtype=torch.int64).double() / (frames.shape[:2].numel() * 127.5) - 1.0
        return mean.movedim(-1, 0).float()

    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every window that starts at a multiple of `stride` once, in order: read by the exact `memory` back-end."""
        store = open_store(self.shards.place, self._split, self.shards.skips)
        return MemoryBackend(store, self._config, self._seed, "").evaluation_windows(stride)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`."""
        self.turn_to((rank, world_size))
        rows = self.windows(step)
        return self.assemble(self.frames(rows), rows)

    def windows(self, step: int) -> list[Row]:
        """The windows of a batch of this rank.

        Where damaged strips are skipped, a window that touches one gives way to the next of its block that does not.
        """
        start, stop = rank_part(self.sampler.batch_size, *self._rank)
        numbers = range(step * (stop - start), (step + 1) * (stop - start))
        wanted = [divmod(number, self.order.block) for number in numbers]
        self._read_ahead(wanted[0][0], wanted[-1][0])
        return [self._sound(self._blocks[block].result(), place) for block, place in wanted]

    def frames(self, rows: list[Row]) -> Tensor:
        """Frames uint8 [b,T,64,64,3] of these windows, of blocks that hold them."""
        return torch.from_numpy(np.stack([block.frames[row] for block, row in rows if isinstance(block, FrameBlock)]))

    def assemble(self, frames: Tensor, rows: list[Row]) -> Batch:
        """The batch of these frames with the windows' other columns."""
        columns = (
            np.stack([getattr(block, name)[row] for block, row in rows]) for name in ("actions", "rewards", "dones")
        )
        return Batch(frames, *map(torch.from_numpy, columns))

    def new_block(self, order: np.ndarray) -> Block:
        """What a block's windows are read into; `order` is that in which they are given out."""
        frames = self._spare.pop() if self._spare else None
        return FrameBlock(order, self.sequence_length, self.action_dim, self.shards, frames)

    def turn_to(self, rank: tuple[int, int]) -> bool:
        """Become the reader of this rank of so many processes; whether that is a change."""
        if rank == self._rank:
            return False
        self._rank = rank
        for block in self._blocks.values():
            block.cancel()
        self._blocks.clear()
        return True

    def _sound(self, block: Block, place: int) -> Row:
        """The window given out `place`-th of a block, or the next sound one."""
        size = len(block.order)
        for shift in range(size):
            row = block.order[(place + shift) % size]
            if not block.is_damaged(row):
                self.skipped += shift
                return block, row
        raise UserError(f"{self.shards.place}: {size} windows in a row touch damaged strips; pack it again")

    def _read_ahead(self, first: int, last: int) -> None:
        """Have the blocks `first` to `last` and the one after them read; let go of the others."""
        wanted = range(first, last + 2)
        for number in [number for number in self._blocks if number not in wanted]:
            block = self._blocks.pop(number)
            if block.done() and not block.exception():
                self._reuse(block.result())
            else:
                block.cancel()
        for number in wanted:
            if number not in self._blocks:
                self._blocks[number] = self._thread.submit(self._read_block, number, self._rank)

    def _reuse(self, block: Block) -> None:
        """Keep the frames of a block that nobody reads any more."""
        if isinstance(block, FrameBlock):
            self._spare.append(block.frames)

    def _read_block(self, number: int, rank: tuple[int, int]) -> Block:
        if self._reading is None or self._reading[0] != (number, rank):
            self._reading = (number, rank), self._stream(number * self.order.block, rank)
        stream = self._reading[1]
        self._reading = None  # stays so after an error
        block = self.new_block(self.order.shuffled(number, *rank))
        for pieces in islice(stream, self.order.block):
            block.put(pieces)
        self._reading = (number + 1, rank), stream
        return block

    def _stream(self, window: int, rank: tuple[int, int]) -> Iterator[list[Piece]]:
        """A rank's windows in order of reading, without end, from its window number `window` on."""
        number, skip = self.order.find(window, *rank)
        while True:
            yield from self._read_pass(self.order.pass_of(number, *rank), skip)
            number, skip = number + 1, 0

    def _read_pass(self, plan: Pass, skip: int) -> Iterator[list[Piece]]:
        """The windows of a pass but for the first `skip`."""
        if skip >= len(plan):
            return
        first = int(np.searchsorted(plan.ends, skip, side="right"))
        shards = plan.shards[np.unique(plan.place[first:])].tolist()
        strips = self.shards.strips(self._read, shards)
        for place in range(first, len(plan.episodes)):
            before = int(plan.ends[place - 1]) if place else 0
            starts = plan.offsets[place] + self.sequence_length * np.arange(plan.ends[place] - before)
            entry = self._entries[plan.episodes[place]]
            held: dict[int, StreamedStrip] = {}
            for start in starts[max(skip - before, 0) :].tolist():
                stop = start + self.sequence_length
                touched = range(start // STRIP_LENGTH, -(-stop // STRIP_LENGTH))
                while touched[-1] not in held:
                    strip = next(strips)
                    if strip.key[0] == entry.id and strip.key[1] in touched:
                        held[strip.key[1]] = strip
                yield [_piece(held[number], number, start, stop) for number in touched]
                held = {number: held[number] for number in touched[-1:]}


def _piece(strip: StreamedStrip, number: int, start: int, stop: int) -> Piece:
    """What the frames `start` to `stop` of an episode take of its strip `number`."""
    offset = number * STRIP_LENGTH
    first, end = max(start - offset, 0), min(stop - offset, STRIP_LENGTH)
    return strip, first, end - first
