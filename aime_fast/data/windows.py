"""Which windows make up which batch: a pure function of the seed and the step."""

from collections.abc import Sequence

import numpy as np

from aime_fast.errors import UserError


def valid_starts(episode_lengths: Sequence[int], sequence_length: int, stride: int = 1) -> np.ndarray:
    """Windows of `sequence_length` frames inside one episode, in order: int64 [n,2] rows (episode, first frame).

    First frames are the multiples of `stride`; an episode shorter than the window has none.
    `UserError` for a stride below 1.
    """
    if stride < 1:
        raise UserError(f"the stride of windows is {stride}; it must be at least 1")
    counts = [max(0, (length - sequence_length) // stride + 1) for length in episode_lengths]
    episodes = np.repeat(np.arange(len(counts)), counts)
    firsts = np.concatenate([np.arange(count) * stride for count in counts]) if counts else np.empty(0, np.int64)
    return np.stack([episodes, firsts.astype(np.int64)], axis=1)


def rank_part(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last (exclusive) place of this rank's part of a global batch; `UserError` when a rank gets nothing."""
    if batch_size < world_size:
        raise UserError(
            f"batch_size {batch_size} is less than the {world_size} processes; "
            f"raise it to at least {world_size} or start fewer processes"
        )
    return rank * batch_size // world_size, (rank + 1) * batch_size // world_size


def keyed_order(count: int, seed: int, number: int) -> np.ndarray:
    """Permutation of `count` things, int64 [count], decided by the two numbers below 2^64.

    Raw Philox words are sorted: unlike NumPy's own `permutation`, that stream is promised never to change, so a run
    resumed under another NumPy sees the same order.
    """
    return np.argsort(np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(count), kind="stable")


class WindowSampler:
    """Stateless sampler of T-frame windows, uniform over every valid start of every episode.

    All valid starts are walked in a keyed random order, then all again in another, without end: window number `g`
    of the run is place `g mod N` in permutation `g div N`. Step `s` of a global batch of B takes the windows
    `s*B .. s*B+B-1`, so (seed, step) alone decides a batch, and the number of processes only how it is cut.
    """

    def __init__(
        self,
        episode_lengths: Sequence[int],
        sequence_length: int,
        batch_size: int,
        seed: int,
        window_stride: int = 0,
        windows_per_epoch: int = 0,
    ) -> None:
        """Raise `UserError` for sizes below one, or a window longer than every episode.

        `batch_size` counts the windows of all processes. An epoch has `windows_per_epoch` windows; 0 takes the number
        of valid starts at `window_stride`, whose 0 means T.
        """
        for name, value, least in (
            ("sequence_length", sequence_length, 1),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("window_stride", window_stride, 0),
            ("windows_per_epoch", windows_per_epoch, 0),
        ):
            if value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        if seed >= 2**64:
            raise UserError(f"seed is {seed}; it must be less than 2**64")
        longest = max(episode_lengths, default=0)
        if sequence_length > longest:
            raise UserError(
                f"sequence_length is {sequence_length} frames, but the longest of {len(episode_lengths)} episodes has "
                f"{longest}; lower it to {longest} or less, or record longer episodes"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.short_episodes = sum(length < sequence_length for length in episode_lengths)
        """Episodes shorter than a window, which are never drawn from."""
        self._starts = valid_starts(episode_lengths, sequence_length)
        self.windows_per_epoch = windows_per_epoch or len(
            valid_starts(episode_lengths, sequence_length, window_stride or sequence_length)
        )
        """Windows in one epoch."""
        self._orders: dict[int, np.ndarray] = {}

    @property
    def valid_windows(self) -> int:
        """N, the number of valid starts: the length of one permutation."""
        return len(self._starts)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold at least the windows of one epoch."""
        return -(-self.windows_per_epoch // self.batch_size)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """This rank's contiguous part of the global batch of `step`: int64 [b,2] rows (episode, first frame).

        The parts of all ranks, in order, are the global batch. `UserError` when a rank would get nothing.
        """
        first = step * self.batch_size
        start, stop = rank_part(self.batch_size, rank, world_size)
        return self.windows(np.arange(first + start, first + stop))

    def windows(self, numbers: np.ndarray) -> np.ndarray:
        """The windows with these numbers in the run, int64 [b]: int64 [b,2] rows (episode, first frame)."""
        cycles, places = np.divmod(numbers, self.valid_windows)
        ids = np.empty_like(numbers)
        for cycle in set(cycles.tolist()):
            here = cycles == cycle
            ids[here] = self._order(cycle)[places[here]]
        return self._starts[ids]

    def _order(self, cycle: int) -> np.ndarray:
        """Permutation number `cycle` of the N starts."""
        order = self._orders.get(cycle)
        if order is None:
            order = keyed_order(self.valid_windows, self.seed, cycle)
            if len(self._orders) > 1:
                self._orders.clear()
            self._orders[cycle] = order
        return order
