"""A fixed sample of every task's gradient, kept for one step: does a gradient point where it pointed the step before?

Whole gradients of a step before would cost as much memory as the gradients. Every parameter gets the same share of the
sample, so that a matrix of a thousandth of the parameters is seen as well as a large one: what swings is often a head.
Products are weighted by the entries that a sampled one stands for, so they estimate those of the whole gradients.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from zlib import crc32

import torch
from torch import Tensor

from aime_fast.balancing.layouts.cut import Cut
from aime_fast.balancing.vectors import Vector

ENTRIES = 1 << 16
"""Entries of a task's sample, over all ranks."""
SAMPLE = ("sample", "sample_layout")
"""Names of its state."""
_COMMON = 2 * 3 * 5 * 7
"""A stride that shares a factor with the length of a row would sample some columns only."""


class Sample:
    """Samples of the task gradients of this step and of the step before, on this rank.

    The entries depend on the parameters alone, so the ranks' shards of any layout hold the same ones together.

    Args:
        cuts: how each tensor of a vector consists of parameters.
        sizes: entries of each parameter by position.
        tasks: n.
        device: of the vectors.
    """

    def __init__(self, cuts: Sequence[Cut], sizes: Mapping[int, int], tasks: int, device: torch.device) -> None:
        most = max(ENTRIES // len(sizes), 1)
        strides = {index: stride(size, most) for index, size in sizes.items()}
        self._entries: list[Tensor] = []
        """Sampled entries of each tensor of a vector, int64."""
        scales = [torch.empty(0, dtype=torch.float64)]
        for cut in cuts:
            entries = [torch.empty(0, dtype=torch.int64)]
            for piece in cut.pieces:
                step = strides[piece.index]
                first = -piece.start % step
                entries.append(torch.arange(piece.at + min(first, piece.numel), piece.at + piece.numel, step))
                scales.append(torch.full(entries[-1].shape, step, dtype=torch.float64))
            self._entries.append(torch.cat(entries).to(device))
        self._scales = torch.cat(scales).sqrt().to(device)
        self._zero = torch.zeros(1, device=device)
        self.samples = torch.zeros(2, tasks, len(self._scales), dtype=torch.float64, device=device)
        """[2, n, m]: of this step and of the step before, each entry times the root of its weight; zeros at first."""
        self._layout = torch.tensor(crc32(repr((list(cuts), strides)).encode()))

    def products(self, vectors: Sequence[Vector]) -> Tensor:
        """Take the sample of n vectors; the part of this rank in the products of both steps, float64 [2, 2, n]."""
        taken = [self._zero[:0]]
        for vector in vectors:
            for tensor, entries in zip(vector, self._entries, strict=True):
                taken.append(self._zero.expand(len(entries)) if tensor is None else tensor[entries])
        torch.mul(torch.cat(taken).view(len(vectors), -1), self._scales, out=self.samples[0])
        return (self.samples[:, None] * self.samples).sum(-1)

    def keep(self, finite: Tensor) -> None:
        """Make this step's sample the one of the step before, in place; not where `finite`, 0-d bool, is false."""
        torch.where(finite, self.samples[0], self.samples[1], out=self.samples[1])

    def state_dict(self) -> dict[str, Tensor]:
        """The sample of the step before, and a checksum of which entries it holds."""
        return {"sample": self.samples[1].clone(), "sample_layout": self._layout}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the state of a sample of the same entries; other entries have no step before."""
        if state["sample"].shape == self.samples[1].shape and torch.equal(state["sample_layout"], self._layout):
            self.samples[1].copy_(state["sample"])


def cosines(products: Tensor) -> Tensor:
    """Cosine of each task's gradient with that of the step before, [n], from `products` [2, 2, n] over all ranks.

    0 where one of the two has no gradient or one that is not finite.
    """
    return (products[0, 1] / (products[0, 0] * products[1, 1]).sqrt()).nan_to_num(0.0, 0.0, 0.0)


def stride(size: int, most: int) -> int:
    """The smallest distance of entries that takes at most `most` of `size` and has no factor below 11."""
    step = -(-size // most)
    while gcd(step, _COMMON) > 1:
        step += 1
    return step
