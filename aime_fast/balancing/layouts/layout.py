"""Long vectors of task gradients, and the two passes over them that balancing needs.

A *vector* is one task's gradient on this rank as a list of tensors, averaged over micro-batches and ranks. A layout
holds the vectors of all tasks, the consensus direction for solvers that ask for one, and the division of the
parameters into groups.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aime_fast.balancing.layouts.cut import Cut
from aime_fast.balancing.layouts.sample import Sample
from aime_fast.balancing.vectors import Vector, weighted_sum
from aime_kernels import rgb_combine, rgb_gram

Segments = list[tuple[int, int, int]]
"""Parts of a vector as (position of the tensor, first entry, end)."""


class Products(NamedTuple):
    """What one pass over the task gradients finds, summed over ranks; float64."""

    grams: Tensor
    """[G, n, n], or [G, n+1, n+1] with d last: inner products within each group."""
    losses: Tensor | None
    """[n]: sums of the loss values, where they were given."""
    successive: Tensor | None
    """[2, 2, n]: `Sample.products`, where a sample is kept."""


class Layout:
    """n task gradients on this rank. `gram` and `combine` read every entry once each."""

    compiled = ("_gram",)
    compiled_gradients = False

    def __init__(self) -> None:
        self.given: list[Vector] = []
        """The task gradients in task order, for a caller that sets them itself."""
        self.reduce: Callable[[Tensor], Tensor] | None = None
        """Sums a small tensor over the ranks that hold the other shards, for such a caller."""
        self.direction: Vector | None = None
        """The consensus direction d, laid out as the vectors are; None until a solver asks for it."""
        self.update: Vector = []
        """The balanced update: the memory of the first vector that has a tensor at each position."""
        self.tasks_reaching: list[set[int]] = []
        """For each parameter the tasks that have had a gradient of it; equal on all ranks."""
        self._segments: list[Segments] | None = None

    def vectors(self) -> list[Vector]:
        """The task gradients in task order, complete."""
        return self.given

    def total(self, grams: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Inner products of any shape and loss values, both summed over the ranks, by one all-reduce at most."""
        return grams if self.reduce is None else self.reduce(grams), losses

    def new_sample(self, tasks: int) -> Sample | None:
        """Memory for a sample of the task gradients; None for a layout that knows no parameters."""
        return None

    def gram(self, direction: bool, losses: Tensor | None = None, sample: Sample | None = None) -> Products:
        """Inner products of the task gradients within each group.

        direction: keep d, and add its row and column last. losses: this rank's share of the loss values, [n]. sample:
        takes the sample of this step.
        """
        vectors = self.vectors()
        successive = sample.products(vectors) if sample else None
        if direction:
            vectors = [*vectors, self._direction_like(vectors)]
        grams = self._gram(self._parts(vectors))
        if successive is None:
            return Products(*self.total(grams, losses), None)
        numbers, losses = self.total(torch.cat([grams.flatten(), successive.flatten()]), losses)
        summed, products = numbers.split([grams.numel(), successive.numel()])
        return Products(summed.view_as(grams), losses, products.view_as(successive))

    def targets(self, direction: bool) -> list[list[Vector]]:
        """What `combine` reads and writes in each group: the task gradients; with `direction` also d and the update.

        The update lies in the memory of the first task with a tensor at each position.
        """
        vectors, known = self.vectors(), self.direction
        self.update = [_first(tensors) for tensors in zip(*vectors, strict=True)]
        if not direction or known is None:
            return self._parts(vectors)
        # d may have entries where no task has any in this step, and so has the update then.
        both = zip(self.update, known, strict=True)
        self.update = [torch.empty_like(d) if u is None and d is not None else u for u, d in both]
        return self._parts([*vectors, known, self.update])

    @staticmethod
    def _gram(parts: list[list[Vector]]) -> Tensor:
        """The Gram matrix of each group, [G, m, m]: one region for `torch.compile`."""
        device = next((t.device for part in parts for vector in part for t in vector if t is not None), None)
        grams = []
        for part in parts:
            reached = any(_first(vector) is not None for vector in part)
            nothing = (len(part), len(part))
            grams.append(rgb_gram(part) if reached else torch.zeros(nothing, dtype=torch.float64, device=device))
        return torch.stack(grams)

    @staticmethod
    def combine(targets: list[list[Vector]], weights: Tensor, direction: Tensor | None, finite: Tensor) -> None:
        """Write the update and the next direction of each group; see `Solution` for the weights.

        targets: of the method of that name, with the same choice of a direction. finite: 0-d bool; False writes a zero
        update and leaves the direction as it is.
        """
        if direction is None:
            for part, own in zip(targets, weights, strict=True):
                weighted_sum(part, own, finite)
        else:
            for part, both in zip(targets, torch.stack([weights, direction], 1), strict=True):
                rgb_combine(part[:-2], part[-2], part[-1], both, finite)

    def divide(self, group_of: Sequence[int], groups: int) -> None:
        """Divide the parameters into groups; `group_of` has the group of every parameter. Otherwise all are one."""
        self._segments = segments(self.cuts(), group_of, groups)

    def cuts(self) -> list[Cut]:
        """How each tensor of a vector consists of parameters, for groups and for state stored by parameter name.

        The plain layout of `RGB` knows no parameters: it has one group and is not stored by name.
        """
        raise NotImplementedError

    def _parts(self, vectors: list[Vector]) -> list[list[Vector]]:
        """The vectors' views in each group; the vectors themselves where there is one."""
        if self._segments is None:
            return [vectors]
        return [
            [[None if (t := vector[k]) is None else t[start:end] for k, start, end in group] for vector in vectors]
            for group in self._segments
        ]

    def _direction_like(self, vectors: list[Vector]) -> Vector:
        """The direction on the vectors' device, with a tensor wherever a vector has one."""
        self.direction = self.direction or [None] * len(vectors[0])
        for k, present in enumerate(map(_first, zip(*vectors, strict=True))):
            known = self.direction[k]
            if present is not None:
                wide = torch.promote_types(present.dtype, torch.float32)
                new = torch.zeros_like(present, dtype=wide) if known is None else known.to(present.device)
                self.direction[k] = new
        return self.direction


def segments(cuts: Sequence[Cut], group_of: Sequence[int], groups: int) -> list[Segments]:
    """The parts of each group, as long as can be. Padding, which is zero in every vector, joins the part before it."""
    found: list[Segments] = [[] for _ in range(groups)]
    for position, cut in enumerate(cuts):
        pieces = sorted(cut.pieces, key=lambda piece: piece.at)
        starts = [0, *(piece.at for piece in pieces[1:])]
        last = None
        for piece, start, end in zip(pieces, starts, [*starts[1:], torch.Size(cut.shape).numel()], strict=False):
            own = found[group_of[piece.index]]
            if own is last:
                start = own.pop()[1]
            own.append((position, start, end))
            last = own
    return found


def _first(tensors: Sequence[Tensor | None]) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor is not None), None)
