"""Small blocks that several parts of the model share."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

T = TypeVar("T")


def in_float32(function: Callable[..., T]) -> Callable[..., T]:
    """`function` computed without autocast, on inputs of at least float32.

    Bfloat16 is for convolutions, attention and linear maps. Densities, divergences, distances and recurrent states
    need 24 bits.
    """

    def call(*inputs: Any) -> T:
        device = next(x.device.type for x in inputs if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*(wide(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs))

    return call


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where it is float64 already."""
    return x if x.dtype == torch.float64 else x.float()


def mlp(inputs: int, hidden: int, outputs: int, layers: int = 1) -> nn.Sequential:
    """`layers` hidden layers of width `hidden`, each normalised and SiLU-activated, then a linear read-out."""
    blocks: list[nn.Module] = []
    for width in [inputs] + [hidden] * (layers - 1):
        blocks += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.SiLU()]
    return nn.Sequential(*blocks, nn.Linear(hidden, outputs))


class ConvBlock(nn.Module):
    """Convolution and SiLU; `stride` 2 halves an even side, -2 doubles any side.

    It has no normalisation: frames differ little from each other, and normalising over the frame slows learning the
    difference (docs/log.md).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if stride < 0 else nn.Conv2d
        self.conv = kind(inputs, outputs, 3 if stride == 1 else 4, stride=abs(stride), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, h, w] to [N, outputs, h', w']."""
        return F.silu(self.conv(x))


class Residual(nn.Module):
    """`x + conv(x)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = ConvBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, h, w] to the same shape."""
        return x + self.block(x)


def bounded_log_variance(raw: Tensor, low: float = -6.0, high: float = 2.0) -> Tensor:
    """Smoothly bound log-variances to (low, high); the gradient never vanishes inside float range."""
    return low + (high - low) * torch.sigmoid((raw - (low + high) / 2) * (4 / (high - low)))


def previous(sequence: Tensor, start: Tensor) -> Tensor:
    """Shift [B, T, ...] by one frame: x_{t-1} at t, and the learned `start` [...] at t = 0."""
    first = start.expand(sequence.shape[0], 1, *sequence.shape[2:])
    return torch.cat([first, sequence[:, :-1]], dim=1)
