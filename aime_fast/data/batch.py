"""A batch of windows: the input of a training step."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from aime_kernels import normalise_frames


@dataclass(frozen=True, eq=False)
class Batch:
    """B windows of T frames. `actions[:, t]` is taken after observing `observations[:, t]`."""

    observations: Tensor
    """uint8 [B,T,S,S,3], RGB."""
    actions: Tensor
    """float32 [B,T,A]."""
    rewards: Tensor
    """float32 [B,T]."""
    dones: Tensor
    """bool [B,T], terminated or truncated at this frame."""
    terminated: Tensor
    """bool [B,T], the task itself ended at this frame, and no reward follows; where the recording stopped, some may."""

    def __len__(self) -> int:
        return len(self.observations)

    def frames(self) -> Tensor:
        """The observations as float32 [B,T,3,H,W] in [-1, 1]."""
        return normalise_frames(self.observations)

    def rows(self, start: int, stop: int) -> "Batch":
        """Windows `start` to `stop` (exclusive), as views: one micro-batch."""
        window = slice(start, stop)
        return self.each(lambda field: field[window])

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`, without a copy if it is there already. Copies from pinned memory are asynchronous."""
        return self.each(lambda field: field.to(device, non_blocking=True))

    def each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch of what `function` makes of each field."""
        return Batch(*(function(getattr(self, field.name)) for field in fields(self)))
