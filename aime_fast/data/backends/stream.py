"""What the sequential back-ends share: shards read from front to back, windows shuffled in blocks, one block ahead."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.memory import MemoryBackend
from aime_fast.data.batch import Batch
from aime_fast.data.manifest import STRIP_LENGTH, Manifest
from aime_fast.data.store import check_split, open_episodes, open_store
from aime_fast.data.stream_order import Pass, StreamOrder
from aime_fast.data.stream_reader import ReadMembers, Shards, StreamedStrip
from aime_fast.data.windows import WindowSampler, rank_part
from aime_fast.errors import UserError

BLOCK_FRAMES = 4096
"""Frames of the windows that are shuffled among themselves: 50 MB raw."""


@dataclass(frozen=True, eq=False)
class StreamWindow:
    """T frames of one episode as pieces of strips: `count` frames of each, from frame `first`."""

    pieces: list[tuple[StreamedStrip, int, int]]

    @property
    def damaged(self) -> bool:
        """Whether a strip of it is known to be damaged."""
        return any(strip.damaged for strip, _, _ in self.pieces)

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actions float32 [T,A], rewards float32 [T], dones bool [T]."""
        cut = [(piece.strip, slice(first, first + count)) for piece, first, count in self.pieces]
        return (
            np.concatenate([strip.actions[rows] for strip, rows in cut]),
            np.concatenate([strip.rewards[rows] for strip, rows in cut]),
            np.concatenate([(strip.terminated | strip.truncated)[rows] for strip, rows in cut]),
        )


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
        self._blocks: dict[int, Future[list[StreamWindow]]] = {}
        self._reading: tuple[tuple[int, tuple[int, int]], Iterator[StreamWindow]] | None = None

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
        windows = list(islice(self._stream(0, (0, 1)), self.order.block))
        frames = self.decode([window for window in windows if not window.damaged])
        mean = frames.sum((0, 1), dtype=torch.int64).double() / (frames.shape[:2].numel() * 127.5) - 1.0
        return mean.movedim(-1, 0).float()

    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every window that starts at a multiple of `stride` once, in order: read by the exact `memory` back-end."""
        store = open_store(self.shards.place, self._split, self.shards.skips)
        return MemoryBackend(store, self._config, self._seed, "").evaluation_windows(stride)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`."""
        self.turn_to((rank, world_size))
        windows = self.windows(step)
        return self.assemble(self.decode(windows), windows)

    def windows(self, step: int) -> list[StreamWindow]:
        """The windows of a batch of this rank.

        Where damaged strips are skipped, a window that touches one gives way to the next of its block that does not.
        """
        start, stop = rank_part(self.sampler.batch_size, *self._rank)
        numbers = range(step * (stop - start), (step + 1) * (stop - start))
        wanted = [divmod(number, self.order.block) for number in numbers]
        self._prefetch(wanted[0][0], wanted[-1][0])
        return [self._sound(self._blocks[block].result(), place) for block, place in wanted]

    def assemble(self, frames: Tensor, windows: list[StreamWindow]) -> Batch:
        """The batch of these frames with the windows' other columns."""
        columns = zip(*(window.columns() for window in windows), strict=True)
        return Batch(frames, *(torch.from_numpy(np.stack(column)) for column in columns))

    def decode(self, windows: list[StreamWindow]) -> Tensor:
        """Frames uint8 [b,T,64,64,3] of these windows, decoded by Pillow."""
        frames = [
            np.concatenate([self.shards.frames(strip)[first : first + n] for strip, first, n in window.pieces])
            for window in windows
        ]
        return torch.from_numpy(np.stack(frames))

    def prepare(self, window: StreamWindow) -> None:
        """What can be done for a window while its block is read."""

    def turn_to(self, rank: tuple[int, int]) -> bool:
        """Become the reader of this rank of so many processes; whether that is a change."""
        if rank == self._rank:
            return False
        self._rank = rank
        for block in self._blocks.values():
            block.cancel()
        self._blocks.clear()
        return True

    def _sound(self, block: list[StreamWindow], place: int) -> StreamWindow:
        for shift in range(len(block)):
            window = block[(place + shift) % len(block)]
            if not window.damaged:
                self.skipped += shift
                return window
        raise UserError(f"{self.shards.place}: {len(block)} windows in a row touch damaged strips; pack it again")

    def _prefetch(self, first: int, last: int) -> None:
        """Have the blocks `first` to `last` and the one after them read; let go of the others."""
        wanted = range(first, last + 2)
        for block in [block for block in self._blocks if block not in wanted]:
            self._blocks.pop(block).cancel()
        for block in wanted:
            if block not in self._blocks:
                self._blocks[block] = self._thread.submit(self._read_block, block, self._rank)

    def _read_block(self, block: int, rank: tuple[int, int]) -> list[StreamWindow]:
        """The windows of one block in the order they are given out."""
        if self._reading is None or self._reading[0] != (block, rank):
            self._reading = (block, rank), self._stream(block * self.order.block, rank)
        stream = self._reading[1]
        self._reading = None  # stays so after an error
        windows = list(islice(stream, self.order.block))
        self._reading = (block + 1, rank), stream
        return [windows[place] for place in self.order.shuffled(block, *rank).tolist()]

    def _stream(self, window: int, rank: tuple[int, int]) -> Iterator[StreamWindow]:
        """A rank's windows in order of reading, without end, from its window number `window` on."""
        number, skip = self.order.find(window, *rank)
        while True:
            yield from self._read_pass(self.order.pass_of(number, *rank), skip)
            number, skip = number + 1, 0

    def _read_pass(self, plan: Pass, skip: int) -> Iterator[StreamWindow]:
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
                window = StreamWindow([_piece(held[number], number, start, stop) for number in touched])
                self.prepare(window)
                yield window
                held = {number: held[number] for number in touched[-1:]}


def _piece(strip: StreamedStrip, number: int, start: int, stop: int) -> tuple[StreamedStrip, int, int]:
    """What the frames `start` to `stop` of an episode take of its strip `number`."""
    offset = number * STRIP_LENGTH
    first, end = max(start - offset, 0), min(stop - offset, STRIP_LENGTH)
    return strip, first, end - first
