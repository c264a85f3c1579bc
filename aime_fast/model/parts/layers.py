"""Small blocks that several parts of the model share."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

T = TypeVar("T")
SILU_GAIN = 1.68
"""1 / sqrt(E[silu(x)^2]) of a standard normal x: weights scaled by it keep the size of signals (He et al. 2015)."""
CONTRAST = 4.0
"""Networks read (x - mean frame) * CONTRAST, which has about unit size."""
SHORTEST = 1e-12
"""Least length by which `unit` divides."""


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
        read = inputs * (9 if stride == 1 else 16 if stride > 0 else 4)
        nn.init.normal_(self.conv.weight, std=SILU_GAIN * read**-0.5)
        nn.init.zeros_(cast(Tensor, self.conv.bias))

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
        return (x + self.block(x)) * 0.7071


def joined(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] = ()) -> Tensor:
    """What linear maps with these weights, and biases if any, make of one input, side by side: one product for all."""
    return F.linear(x, torch.cat([*weights]), torch.cat([*biases]) if biases else None)


class _Unit(torch.autograd.Function):
    """`unit`; its gradient as one projection takes a third of the launches that autograd takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, shortest: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(shortest)
        made = x / length
        ctx.save_for_backward(made, length)
        ctx.dim, ctx.shortest = dim, shortest
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        made, length = ctx.saved_tensors
        # Where the length does not count, nothing is projected out.
        along = (upstream * made).sum(ctx.dim, keepdim=True) * (length > ctx.shortest)
        return torch.addcmul(upstream, made, along, value=-1) / length, None, None


def unit(x: Tensor, dim: int, shortest: float = SHORTEST) -> Tensor:
    """Vectors along `dim` divided by their lengths, of which none counts as less than `shortest`."""
    made: Tensor = _Unit.apply(x, dim, shortest)
    return made


def bounded_log_variance(raw: Tensor, low: float = -6.0, high: float = 2.0) -> Tensor:
    """Smoothly bound log-variances to (low, high); the gradient never vanishes inside float range."""
    return low + (high - low) * torch.sigmoid((raw - (low + high) / 2) * (4 / (high - low)))


def previous(sequence: Tensor, start: Tensor) -> Tensor:
    """Shift [B, T, ...] by one frame: x_{t-1} at t, and the learned `start` [...] at t = 0."""
    first = start.expand(sequence.shape[0], 1, *sequence.shape[2:])
    return torch.cat([first, sequence[:, :-1]], dim=1)
