"""Which windows make up which batch: a pure function of the seed and the step."""

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from aime_fast.errors import UserError, check_at_least


class NoWindow(UserError):
    """No episode is as long as a window."""


def valid_starts(episode_lengths: Sequence[int], sequence_length: int, stride: int = 1) -> np.ndarray:
    """All windows of `sequence_length` frames inside one episode: int64 [n,2] of (episode, first frame), sorted.

    First frames are multiples of `stride`. An episode shorter than the window has none. `UserError` for a stride
    below 1.
    """
    if stride < 1:
        raise UserError(f"the stride of windows is {stride}; it must be at least 1")
    starts = [np.arange(0, length - sequence_length + 1, stride) for length in episode_lengths]
    episodes = np.repeat(np.arange(len(starts)), [len(firsts) for firsts in starts])
    return np.stack([episodes, np.concatenate([np.empty(0, np.int64), *starts])], axis=1)


def rank_part(batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last (exclusive) window of a rank in a global batch; `UserError` if a rank would get none."""
    if batch_size < world_size:
        raise UserError(
            f"batch_size {batch_size} is less than the {world_size} processes; "
            f"raise it to at least {world_size} or start fewer processes"
        )
    return rank * batch_size // world_size, (rank + 1) * batch_size // world_size


def keyed_order(count: int, seed: int, number: int) -> np.ndarray:
    """Permutation of `count` items, int64 [count], determined by `seed` and `number`, both below 2^64.

    It sorts raw Philox words. NumPy never changes that stream, unlike `permutation`, so a run that is resumed with
    another NumPy sees the same order.
    """
    return np.argsort(np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(count), kind="stable")


class WindowSampler:
    """Stateless sampler of T-frame windows, uniform over all valid starts.

    It visits all N valid starts in a keyed random order, then all of them in another order, and so on: window `g` of
    the run is item `g mod N` of permutation `g div N`. Step `s` takes windows `s*B` to `s*B + B - 1`. So (seed, step)
    determine a batch; the number of processes only determines how it is divided.
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
        """Raise `UserError` for sizes out of range, or a window longer than every episode.

        `batch_size` counts the windows of all processes. An epoch has `windows_per_epoch` windows; 0 takes the number
        of valid starts at `window_stride`, where 0 means T.
        """
        check_at_least(1, sequence_length=sequence_length, batch_size=batch_size)
        check_at_least(0, seed=seed, window_stride=window_stride, windows_per_epoch=windows_per_epoch)
        if seed >= 2**64:
            raise UserError(f"seed is {seed}; it must be less than 2**64")
        longest = max(episode_lengths, default=0)
        if sequence_length > longest:
            raise NoWindow(
                f"sequence_length is {sequence_length} frames, but the longest of {len(episode_lengths)} episodes has "
                f"{longest}; lower it to {longest} or less, or record longer episodes"
            )
        self.batch_size, self.seed = batch_size, seed
        self.short_episodes = sum(length < sequence_length for length in episode_lengths)
        """Number of episodes shorter than a window, which are never used."""
        self._starts = valid_starts(episode_lengths, sequence_length)
        self.valid_windows = len(self._starts)
        """N, the number of valid starts."""
        stride = window_stride or sequence_length
        self.windows_per_epoch = windows_per_epoch or len(valid_starts(episode_lengths, sequence_length, stride))
        self.steps_per_epoch = -(-self.windows_per_epoch // batch_size)
        self._order = lru_cache(maxsize=2)(partial(keyed_order, self.valid_windows, seed))
        """Permutation of the N starts, by its number."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """This rank's windows of `step`: int64 [b,2] of (episode, first frame); `UserError` if there are none."""
        start, stop = rank_part(self.batch_size, rank, world_size)
        return self.windows(step * self.batch_size + np.arange(start, stop))

    def windows(self, numbers: np.ndarray) -> np.ndarray:
        """The windows with these numbers in the run, int64 [b]: int64 [b,2] of (episode, first frame)."""
        cycles, places = np.divmod(numbers, self.valid_windows)
        ids = np.empty_like(numbers)
        for cycle in set(cycles.tolist()):
            here = cycles == cycle
            ids[here] = self._order(cycle)[places[here]]
        return self._starts[ids]
