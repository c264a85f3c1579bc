"""The `memory` back-end: frames in the host's memory, or mapped from disk, one vectorised gather a batch."""

from collections.abc import Iterator

from torch import Tensor

from aime_fast.config import LoaderConfig
from aime_fast.data.batch import Batch
from aime_fast.data.store import FrameStore
from aime_fast.data.windows import WindowSampler, valid_starts


class MemoryBackend:
    """Batches of windows of one split, in the order of a `WindowSampler`."""

    def __init__(self, store: FrameStore, config: LoaderConfig, seed: int, description: str) -> None:
        """Raise `UserError` when no episode is as long as a window."""
        self.store = store
        self.sampler = WindowSampler(
            store.lengths,
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
        self._config = config

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""
        return self.sampler.steps_per_epoch

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""
        return self.store.action_dim

    @property
    def environment(self) -> str | None:
        """Task that was recorded, where the data says so."""
        return self.store.environment

    def mean_frame(self) -> Tensor:
        """Mean of the split's frames, float32 [3, 64, 64] in [-1, 1]."""
        return self.store.mean_frame()

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`; decided by the seed and the step alone."""
        return self.store.gather(self.sampler.batch(step, rank, world_size), self._config.sequence_length)

    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every window that starts at a multiple of `stride` once, in order, in batches of at most `batch_size`."""
        windows = valid_starts(self.store.lengths, self._config.sequence_length, stride)
        for first in range(0, len(windows), self._config.batch_size):
            yield self.store.gather(windows[first : first + self._config.batch_size], self._config.sequence_length)
