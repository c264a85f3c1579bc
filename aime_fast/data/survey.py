"""What a look at the data finds before training: the mean frame, and what can't be learnt from it."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Survey:
    """What was found in one split."""

    mean_frame: Tensor
    """float32 [3,S,S] in [-1, 1]."""
    frames: int
    """Frames of the split, seen or not."""
    limits: list[str]
    """What can't be learnt, and why: one line each. Empty for most data."""


class FrameSurvey:
    """The mean of the frames seen so far, and whether they differ."""

    def __init__(self, image_size: int, total: int) -> None:
        """`total` is the number of frames in the data, of which only some may be seen."""
        # Levels are summed as integers, so that every back-end of the same data gets the same bits.
        self._levels = np.zeros((image_size, image_size, 3), np.int64)
        self.total, self._count = total, 0
        self._still = self._one_colour = True
        self._episode, self._first = -1, self._levels

    def see(self, episode: int, frames: np.ndarray) -> None:
        """Add frames uint8 [n,S,S,3], n >= 1, of an episode. Those of one episode come one after another."""
        self._levels += frames.sum(0, dtype=np.int64)
        self._count += len(frames)
        if episode != self._episode:
            self._episode, self._first = episode, frames[0].copy()
        self._still = self._still and bool((frames == self._first).all())
        self._one_colour = self._one_colour and bool((frames == frames[:, :1, :1]).all())

    @property
    def part(self) -> str:
        """How many frames were seen, for the end of a line; empty if these were all."""
        return f" ({self._count} of {self.total} frames were looked at)" if self._count < self.total else ""

    def mean_frame(self) -> Tensor:
        """Mean of the frames: float32 [3,S,S] in [-1, 1]; -1 if there were none."""
        mean = torch.from_numpy(self._levels).double() / (max(self._count, 1) * 127.5) - 1.0
        return mean.movedim(-1, 0).float()

    def limits(self) -> list[str]:
        """What can't be learnt from such frames, one line each; nothing if none were seen."""
        if not self._count:
            return []
        lines = []
        if self._still:
            lines.append(f"frames never change within an episode: no motion can be learnt{self.part}")
        if self._one_colour:
            lines.append(f"every frame has only one colour: no shapes can be learnt{self.part}")
        return lines


def action_limits(low: np.ndarray, high: np.ndarray, part: str = "") -> list[str]:
    """What can't be learnt from actions whose smallest and largest values are `low` and `high`, [A] each.

    `part` is that of the `FrameSurvey` if only the actions of its frames were seen.
    """
    if not len(low):
        return ["there are no actions: only what happens by itself can be learnt"]
    if (low == high).all():
        return [f"the actions are constant: the model can't learn what they do{part}"]
    return []
