"""What back-ends share whose batches a `WindowSampler` decides, one window at a time."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from aime_fast.config import LoaderConfig
from aime_fast.data.batch import Batch
from aime_fast.data.store import Episodes
from aime_fast.data.windows import WindowSampler, rank_part, valid_starts
from aime_fast.errors import UserError


class ExactBackend(ABC):
    """Batches of windows of one split, in the order of a `WindowSampler`; `read` is left to how frames are held."""

    def __init__(self, episodes: Episodes, config: LoaderConfig, seed: int, description: str) -> None:
        """Raise `UserError` when no episode is as long as a window."""
        self.episodes = episodes
        self.sampler = WindowSampler(
            episodes.lengths,
            config.sequence_length,
            config.batch_size,
            seed,
            config.window_stride,
            config.windows_per_epoch,
        )
        short = self.sampler.short_episodes
        left_out = f"; {short} episodes shorter than {config.sequence_length} frames left out" if short else ""
        self.description = description + left_out
        """One line: how the data is read, and why so."""
        self.skipped = 0
        """Windows replaced by the next one because a strip of theirs is damaged."""
        self.sequence_length = config.sequence_length
        """T, frames in a window."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return self.sampler.steps_per_epoch

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""
        return self.episodes.action_dim

    @property
    def environment(self) -> str | None:
        """Task that was recorded, where the data says so."""
        return self.episodes.environment

    def mean_frame(self) -> Tensor:
        """Mean of many of the split's frames, evenly spread: float32 [3, 64, 64] in [-1, 1]."""
        return self.episodes.mean_frame()

    def windows(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The windows of `batch`: int64 [b,2] rows (episode, first frame).

        Where damaged strips are skipped, a window that touches one gives way to the next in the sampler's walk that
        touches none: decided by the data, the seed and the step alone.
        """
        start, stop = rank_part(self.sampler.batch_size, rank, world_size)
        numbers = step * self.sampler.batch_size + np.arange(start, stop)
        windows = self.sampler.windows(numbers)
        bad = ~self.episodes.sound(windows, self.sequence_length)
        tries = 0
        while bad.any():
            if tries == self.sampler.valid_windows:
                raise UserError(f"{self.episodes.description}: every window touches a damaged strip; pack it again")
            tries += 1
            self.skipped += int(bad.sum())
            numbers[bad] += 1
            windows[bad] = self.sampler.windows(numbers[bad])
            bad[bad] = ~self.episodes.sound(windows[bad], self.sequence_length)
        return windows

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`; decided by the seed and the step alone."""
        return self.read(self.windows(step, rank, world_size))

    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every sound window that starts at a multiple of `stride` once, in order, `batch_size` at a time."""
        yield from map(self.read, self.evaluation_parts(stride))

    def evaluation_parts(self, stride: int) -> Iterator[np.ndarray]:
        """The windows of each batch of `evaluation_windows`."""
        windows = valid_starts(self.episodes.lengths, self.sequence_length, stride)
        for first in range(0, len(windows), self.sampler.batch_size):
            part = windows[first : first + self.sampler.batch_size]
            sound = self.episodes.sound(part, self.sequence_length)
            self.skipped += len(part) - int(sound.sum())
            if sound.any():
                yield part[sound]

    @abstractmethod
    def read(self, windows: np.ndarray) -> Batch:
        """A batch of these windows, int64 [b,2] rows (episode, first frame), all sound."""
