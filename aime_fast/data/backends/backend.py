"""The interface of all back-ends, what exact back-ends share, and the simplest of them."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from aime_fast.config import LoaderConfig
from aime_fast.data.batch import Batch
from aime_fast.data.shards.manifest import Manifest
from aime_fast.data.store import Episodes
from aime_fast.data.survey import Survey
from aime_fast.data.windows import WindowSampler, rank_part, valid_starts
from aime_fast.errors import UserError


def training_device() -> torch.device:
    """The device on which this process trains."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


class Backend(ABC):
    """Batches of windows of one split: what training needs of its data."""

    def __init__(
        self, data: Episodes | Manifest, lengths: Sequence[int], config: LoaderConfig, seed: int, description: str
    ) -> None:
        """`lengths` are those of the split's episodes. `UserError` if no episode is as long as a window."""
        self.description = description
        """One line: how the data is read, and why so."""
        self.environment = data.environment
        """Recorded task, if the data names it."""
        self.image_size = data.image_size
        """S, the side of a frame in pixels."""
        self.action_dim = data.action_dim
        """A, the size of an action."""
        self.has_rewards = data.has_rewards
        """Whether the recording had rewards; without them they are zero."""
        self.origin = data.origin
        """What actions meant in the recording, if the data say so."""
        told = () if data.origin is None else (data.origin.line,)
        self.notes: tuple[str, ...] = data.notes if isinstance(data, Episodes) else told
        """What actions meant in the recording, and what reading it changes, one sentence each."""
        self.sequence_length = config.sequence_length
        """T, the number of frames of a window."""
        self.sampler = WindowSampler(
            lengths, config.sequence_length, config.batch_size, seed, config.window_stride, config.windows_per_epoch
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        """Number of batches in an epoch."""
        self.skipped = 0
        """Number of windows replaced by the next one because they touch a damaged chunk."""

    @abstractmethod
    def action_range(self) -> tuple[list[float], list[float]]:
        """Least and largest value of each number of an action in the split, [A] each, to six decimals."""

    @abstractmethod
    def survey(self) -> Survey:
        """The mean of many frames of the split, evenly spaced, and what can't be learnt from the split."""

    @abstractmethod
    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`. In a stream it depends on the number of processes."""

    @abstractmethod
    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every window that starts at a multiple of `stride` once, in order. The last batch may be smaller."""


class ExactBackend(Backend):
    """Windows in the order of a `WindowSampler`. Subclasses implement `read`."""

    def __init__(self, episodes: Episodes, config: LoaderConfig, seed: int, description: str) -> None:
        """`UserError` if no episode is as long as a window."""
        super().__init__(episodes, episodes.lengths, config, seed, description)
        self.episodes = episodes
        if short := self.sampler.short_episodes:
            self.description += f"; {short} episodes shorter than {config.sequence_length} frames left out"

    @abstractmethod
    def read(self, windows: np.ndarray) -> Batch:
        """A batch of these windows, int64 [b,2] of (episode, first frame), all sound."""

    def action_range(self) -> tuple[list[float], list[float]]:
        """Least and largest value of each number of an action in the split, [A] each, to six decimals."""
        return self.episodes.action_range()

    def survey(self) -> Survey:
        """The mean of many frames of the split, evenly spaced, and what can't be learnt from the split."""
        return self.episodes.survey()

    def windows(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The windows of `batch`: int64 [b,2] of (episode, first frame).

        Where damaged chunks are skipped, a window that touches one is replaced by the sampler's next that touches none.
        """
        start, stop = rank_part(self.sampler.batch_size, rank, world_size)
        numbers = step * self.sampler.batch_size + np.arange(start, stop)
        windows = self.sampler.windows(numbers)
        bad = ~self.episodes.sound(windows, self.sequence_length)
        tries = 0
        while bad.any():
            if tries == self.sampler.valid_windows:
                raise UserError(f"{self.episodes.description}: every window touches a damaged chunk; pack it again")
            tries += 1
            self.skipped += int(bad.sum())
            numbers[bad] += 1
            windows[bad] = self.sampler.windows(numbers[bad])
            bad[bad] = ~self.episodes.sound(windows[bad], self.sequence_length)
        return windows

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`, which (seed, step) determine."""
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


class MemoryBackend(ExactBackend):
    """Frames in host memory or mapped from disk, one vectorised gather a batch."""

    def read(self, windows: np.ndarray) -> Batch:
        """A batch of these windows."""
        return self.episodes.gather(windows, self.sequence_length)
