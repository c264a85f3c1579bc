"""The `memory` back-end: frames in the host's memory, or mapped from disk, one vectorised gather a batch."""

import numpy as np

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.exact import ExactBackend
from aime_fast.data.batch import Batch
from aime_fast.data.store import FrameStore


class MemoryBackend(ExactBackend):
    """Copies windows out of a `FrameStore`."""

    def __init__(self, store: FrameStore, config: LoaderConfig, seed: int, description: str) -> None:
        """Raise `UserError` when no episode is as long as a window."""
        super().__init__(store, config, seed, description)
        self._store = store

    def read(self, windows: np.ndarray) -> Batch:
        """A batch of these windows."""
        return self._store.gather(windows, self.sequence_length)
