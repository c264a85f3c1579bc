"""What a model makes of one window, as plain arrays: enough for a figure and for a video, without the model."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Prediction:
    """A window of T frames, of which the model saw the first `context`, and N futures of the others."""

    truth: Array
    """uint8 [T, H, W, 3]."""
    made: Array
    """uint8 [N, T, H, W, 3]. The first `context` frames are filtered: each was seen. The others are imagined."""
    psnr: Array
    """float [N, T], of `made`, in dB."""
    context: int
    """At least 1 and below T."""

    @cached_property
    def errors(self) -> Array:
        """Absolute errors of `made`, mean of the three channels, frames in [0, 1]: float32 [N, T, H, W]."""
        return np.abs(self.made.astype(np.float32) - self.truth).mean(-1) / 255
