"""A batch of windows, and the scale of its frames."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B windows of T frames; `actions[:, t]` is taken after seeing `observations[:, t]`."""

    observations: Tensor
    """uint8 [B,T,64,64,3], RGB."""
    actions: Tensor
    """float32 [B,T,A]."""
    rewards: Tensor
    """float32 [B,T]."""
    dones: Tensor
    """bool [B,T]: terminated or truncated at this frame."""

    def __len__(self) -> int:
        return len(self.observations)

    def rows(self, start: int, stop: int) -> "Batch":
        """Windows `start` to `stop` (exclusive) as views: one micro-batch."""
        window = slice(start, stop)
        return Batch(self.observations[window], self.actions[window], self.rewards[window], self.dones[window])

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; itself where it is there already. The copy is asynchronous from pinned memory."""
        fields = (self.observations, self.actions, self.rewards, self.dones)
        return Batch(*(field.to(device, non_blocking=True) for field in fields))


def frames_to_float(frames: Tensor) -> Tensor:
    """Scale uint8 levels 0..255 to float32 in [-1,1], any shape: `x * (2/255) - 1`."""
    return frames.to(torch.float32).mul_(2.0 / 255.0).sub_(1.0)


def frames_to_uint8(frames: Tensor) -> Tensor:
    """Nearest level of floats in [-1,1] (clipped), any shape; undoes `frames_to_float` exactly."""
    return frames.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
