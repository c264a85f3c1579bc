"""The `memory` back-end: frames in host memory or mapped from disk, one vectorised gather a batch."""

import numpy as np

from aime_fast.data.backends.backend import ExactBackend
from aime_fast.data.batch import Batch


class MemoryBackend(ExactBackend):
    """Copies windows out of episodes whose frames are held."""

    def read(self, windows: np.ndarray) -> Batch:
        """A batch of these windows."""
        return self.episodes.gather(windows, self.sequence_length)
