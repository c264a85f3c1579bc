"""Seconds of kernels on a card that need not be there: from FLOPs, bytes, tiles and the time of an empty kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch

from aime_fast.planning.cards import Card
from aime_fast.planning.counting import Kernel
from aime_fast.planning.operators import Shape

Bound = Literal["launches", "bytes", "products", "network"]
"""What time follows from: kernels too short to fill the card, memory traffic, products, or the links between cards."""

STARTING = 3.3e-6
"""Seconds of a kernel beside its work: start, first loads, last stores."""
REACHED = 0.8
"""The part of a peak that long copies and long products reach: an H200 reached 0.88 and 0.76 to 0.81."""
BYTES_EACH, FLOPS_EACH = 12.7e9, 1.3e12
"""What one multiprocessor moves and computes in a second at most in this step's kernels, which stream no long tensors.

`STARTING` and these two are fitted to the time in which kernels ran in two steps on one H200 (TF32, `small` B=8 and
`paper` B=16); two other steps (`paper` B=8, and T=32) check them (docs/plan.md). FLOPs of bfloat16: twice as many.
"""
HOST = 46e-6
"""Seconds of the host for an operator's call as written: the same H200's took 58.5 and 63.7 ms for 1,258 and 1,396."""
_TILES = ((128, 128, 1.0), (128, 64, 0.8), (64, 64, 0.6), (32, 32, 0.25))
"""Rows and columns of the tiles that libraries choose from, and the part of `REACHED` that each reaches."""


@dataclass(frozen=True)
class Duration:
    """Seconds of some kernels, by what they wait for."""

    launches: float = 0.0
    bytes: float = 0.0
    products: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.launches + self.bytes + self.products

    @property
    def bound(self) -> Bound:
        """The largest part."""
        parts: dict[Bound, float] = {"launches": self.launches, "bytes": self.bytes, "products": self.products}
        return max(parts, key=lambda name: parts[name])

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.launches + other.launches, self.bytes + other.bytes, self.products + other.products)


def device_time(kernels: Iterable[Kernel], card: Card, tf32: bool = True) -> Duration:
    """Time in which kernels run, one after the other. tf32: float32 products run on tensor cores."""
    return sum((_time(kernel, card, tf32) for kernel in kernels), Duration())


def host_time(kernels: Iterable[Kernel]) -> float:
    """Time in which the host calls the operators of a step as written."""
    return HOST * sum(1 for _ in kernels)


def _time(kernel: Kernel, card: Card, tf32: bool) -> Duration:
    """A kernel starts, then moves its bytes and computes its products at once: the longer of the two counts."""
    started = STARTING * kernel.count
    moving = kernel.bytes / min(REACHED * card.bandwidth, BYTES_EACH * card.multiprocessors)
    computing = _products(kernel, card, tf32)
    return Duration(started, 0.0, computing) if computing > moving else Duration(started, moving, 0.0)


def _products(kernel: Kernel, card: Card, tf32: bool) -> float:
    if not kernel.flops:
        return 0.0
    if not kernel.shapes:  # kernels of this project and recurrences are exact float32
        return kernel.flops / (REACHED * card.fp32)
    narrow = kernel.dtype in (torch.bfloat16, torch.float16)
    peak = card.bf16 if narrow else card.tf32 if tf32 else card.fp32
    each = min(REACHED * peak / card.multiprocessors, FLOPS_EACH * (2 if narrow else 1))
    whole = sum(shape.flops for shape in kernel.shapes)
    return kernel.flops / whole * sum(_product(shape, each, card.multiprocessors) for shape in kernel.shapes)


def _product(shape: Shape, each: float, multiprocessors: int) -> float:
    """Seconds of a product: whole rounds of tiles on all multiprocessors, the fastest tile and cut of its depth.

    each: FLOP a second of one multiprocessor.
    """
    best = float("inf")
    for rows, columns, part in _TILES:
        tiles = shape.tiles(rows, columns)
        for cuts in (1, 2, 4, 8, 16):
            depth = max(_LEAST, ceil(shape.depth / cuts))
            rounds = ceil(tiles * cuts / multiprocessors)
            best = min(best, rounds * 2.0 * rows * columns * depth / (each * part))
    return best


_LEAST = 64
"""Least depth of a tile: with less, loading takes longer than computing."""
