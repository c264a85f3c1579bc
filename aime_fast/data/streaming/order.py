"""Which windows a stream gives, and in which order: a pure function of the seed and their numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aime_fast.data.windows import keyed_order
from aime_fast.errors import UserError

_SHARDS, _OFFSETS, _BLOCKS = 1 << 62, 2 << 62, 3 << 62
"""Ranges of keys, so that no two permutations use the same random words."""


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass of a rank over its shards, from first to last."""

    shards: np.ndarray
    """int64, in reading order."""
    episodes: np.ndarray
    """int64 [e], the episodes with at least one window, in reading order."""
    place: np.ndarray
    """int64 [e], index in `shards` of the shard of each."""
    offsets: np.ndarray
    """int64 [e], first frame of the first window of each; the others follow T apart."""
    ends: np.ndarray
    """int64 [e], cumulative number of windows."""

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0


class StreamOrder:
    """Windows of T frames in the order in which shards are read from front to back.

    In one pass over the data an episode gives its windows at `offset, offset + T, offset + 2T, ...`, so no frame
    occurs twice. In T passes `offset` takes every value once, in an order keyed by episode, so every valid start
    occurs once. Each pass reads the shards in another order; rank r of w takes the r-th, (r+w)-th, ... of them. The
    windows of a rank, over all passes, are divided into blocks, and each block is shuffled.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        shards: Sequence[int],
        shard_count: int,
        sequence_length: int,
        block: int,
        seed: int,
    ) -> None:
        """`shards[e]` is the shard of episode e, with episodes in shard order. `block` is in windows."""
        self.block = block
        self._lengths, self._shards = np.asarray(lengths, np.int64), np.asarray(shards, np.int64)
        self._shard_count, self._length, self._seed = shard_count, sequence_length, seed
        self._offsets: tuple[int, np.ndarray] | None = None
        self._ends: dict[tuple[int, int], list[int]] = {}

    def pass_of(self, number: int, rank: int, world_size: int) -> Pass:
        """Pass `number` of a rank; `UserError` if there are fewer shards than processes."""
        if self._shard_count < world_size:
            raise UserError(
                f"{self._shard_count} shards cannot be streamed to {world_size} processes, each reads its own; pack "
                "into more shards, or use --backend memory or dali"
            )
        shards = keyed_order(self._shard_count, self._seed, _SHARDS + number)[rank::world_size]
        place_of = np.full(self._shard_count, -1)
        place_of[shards] = np.arange(len(shards))
        offsets = self._offsets_of(number)
        counts = np.maximum((self._lengths - self._length - offsets) // self._length + 1, 0)
        mine = np.flatnonzero((place_of[self._shards] >= 0) & (counts > 0))
        mine = mine[np.argsort(place_of[self._shards[mine]], kind="stable")]
        return Pass(shards, mine, place_of[self._shards[mine]], offsets[mine], np.cumsum(counts[mine]))

    def find(self, window: int, rank: int, world_size: int) -> tuple[int, int]:
        """The pass that contains a rank's window number `window` in reading order, and its number in that pass."""
        ends = self._ends.setdefault((rank, world_size), [0])
        while ends[-1] <= window:
            ends.append(ends[-1] + len(self.pass_of(len(ends) - 1, rank, world_size)))
        number = int(np.searchsorted(ends, window, side="right")) - 1
        return number, window - ends[number]

    def shuffled(self, block: int, rank: int, world_size: int) -> np.ndarray:
        """The order in which a rank's block of windows is used: int64 [block], positions in reading order."""
        # 40 bits for the block, 11 each for rank and number of processes: no two share a key.
        return keyed_order(self.block, self._seed, _BLOCKS + (world_size % 2048 << 51) + (rank % 2048 << 40) + block)

    def _offsets_of(self, number: int) -> np.ndarray:
        """The offset of every episode in pass `number`: int64 [episodes]."""
        cycle, place = divmod(number, self._length)
        if self._offsets is None or self._offsets[0] != cycle:
            key = np.array([self._seed, _OFFSETS + cycle], np.uint64)
            words = np.random.Philox(key=key).random_raw(len(self._lengths) * self._length)
            self._offsets = cycle, np.argsort(words.reshape(-1, self._length), axis=1, kind="stable")
        return self._offsets[1][:, place]
