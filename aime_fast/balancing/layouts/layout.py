"""Where a task's gradient lives: whole per parameter, whole and flat, or this rank's ZeRO shard (`flat_rows.py`).

A *row* is one task's gradient as a list of float32 tensors, averaged over micro-batches and ranks; `None` stands for
zero. Every layout answers the same calls, so the balancing and the engines know nothing of ranks:

    add(task, gradients, last)   one micro-batch's local gradients of one task join that task's row
    rows()                       all rows, complete: what `RGB.balance` takes
    reduce                       sums the partial Gram matrix over the ranks that hold different shards, or None
    averages                     whether `merge` changes the update: then it is clipped after, not while it is made
    merge(update)                the balanced update in the form that is stepped
    norm_reduce                  sums squares of the merged update over the ranks that hold different shards, or None
    place(update)                hands the update to the optimiser
    clear()                      forgets rows and placed gradients
    cuts()                       which entries of which parameters each tensor of a row holds, so that state laid out
                                 like a row can be read by another layout

Gradients come from `torch.autograd.grad`, not from `loss.backward()`: no `.grad` is touched, so none of DeepSpeed's
backward hooks run and several backward passes over one graph need no repair of its counters. What remains is one
reduction a task, done here straight into the shards that the optimiser steps (`partitions.py`), while the next task's
backward pass runs. The price is that one task's whole gradient lives on each rank until it is reduced.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from aime_fast.balancing.vectors import Vector, owned

Reduce = Callable[[Tensor], Tensor]

_NORM_BLOCK = 4096


@dataclass(frozen=True)
class Piece:
    """`numel` entries of one flattened parameter, and where they lie in a flat tensor. What no piece covers is zero."""

    index: int
    """Position of the parameter in the list of all trainable parameters."""
    start: int
    """The first of its entries."""
    at: int
    """Where that entry lies in the flat tensor."""
    numel: int


@dataclass(frozen=True)
class Cut:
    """How one tensor is put together from entries of parameters."""

    shape: tuple[int, ...]
    """The tensor's shape."""
    pieces: tuple[Piece, ...]
    """What lies in it when it is flattened."""

    @classmethod
    def whole(cls, index: int, parameter: Tensor) -> "Cut":
        """A tensor that is laid out as the parameter at this position."""
        return cls(tuple(parameter.shape), (Piece(index, 0, 0, parameter.numel()),))


class Rows(Protocol):
    """A layout of the task gradients; see the module's docstring for what each call means."""

    averages: bool
    reduce: Reduce | None
    norm_reduce: Reduce | None

    def add(self, task: int, gradients: Sequence[Tensor | None], last: bool) -> None:
        """Add one micro-batch's gradients of `task`, already scaled; `last` marks the step's last micro-batch."""
        ...

    def rows(self) -> list[Vector]:
        """Every task's row, once the last micro-batch was added."""
        ...

    def merge(self, update: Vector) -> Vector:
        """The balanced update, averaged over ranks where that has not happened before."""
        ...

    def place(self, update: Vector) -> None:
        """Put the update where the optimiser reads its gradient."""
        ...

    def clear(self) -> None:
        """Drop the rows and the placed gradient."""
        ...

    def cuts(self) -> list[Cut]:
        """How each tensor of this rank's rows is made."""
        ...


class ParameterRows:
    """This process alone: a row is the list of whole parameter gradients, taken over from autograd without a copy."""

    averages = False
    reduce: Reduce | None = None
    norm_reduce: Reduce | None = None

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._rows: dict[int, Vector] = {}

    def add(self, task: int, gradients: Sequence[Tensor | None], last: bool) -> None:
        """Add gradients aligned with the parameters."""
        if task not in self._rows:
            self._rows[task] = owned(gradients, torch.float32)
            return
        row, old, new = self._rows[task], [], []
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            have = row[index]
            if have is None:
                row[index] = owned([gradient], torch.float32)[0]
            else:
                old.append(have)
                new.append(gradient.to(torch.float32))
        if old:
            torch._foreach_add_(old, new)

    def rows(self) -> list[Vector]:
        """The rows in task order."""
        return [self._rows[task] for task in sorted(self._rows)]

    def merge(self, update: Vector) -> Vector:
        """The update itself: nothing is left to average."""
        return update

    def place(self, update: Vector) -> None:
        """Set each parameter's `.grad`; zero where no task reached it, as in the flat layouts."""
        for parameter, gradient in zip(self.parameters, update, strict=True):
            parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient.to(parameter.dtype)

    def clear(self) -> None:
        """Free the rows and every `.grad`."""
        self._rows.clear()
        for parameter in self.parameters:
            parameter.grad = None

    def cuts(self) -> list[Cut]:
        """One whole parameter a tensor."""
        return [Cut.whole(index, parameter) for index, parameter in enumerate(self.parameters)]


def total_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the default process group, as a new tensor."""
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def nonfinite_poisons_all(total: Callable[[Tensor], Tensor]) -> Reduce:
    """A `reduce` for ranks that balance alone: keeps the local Gram matrix, but NaN everywhere if any rank's is.

    `total` sums a tensor over the ranks. 0 * x is 0 for finite x and NaN otherwise, so one sum makes all ranks agree.
    """

    def reduce(gram: Tensor) -> Tensor:
        return gram + total(gram * 0).sum()

    return reduce


def global_norm(tensors: Iterable[Tensor | None], reduce: Reduce | None, device: torch.device) -> Tensor:
    """Euclidean norm of all entries, shards of other ranks included: 0-d float32, without a host sync."""
    squares = [_square_norm(tensor) for tensor in tensors if tensor is not None]
    total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=device)
    return (total if reduce is None else reduce(total)).sqrt().float()


def _square_norm(tensor: Tensor) -> Tensor:
    # torch's float32 norm of 34 M entries on a CPU is off by 0.2%: take it in blocks and add those up in float64.
    flat = tensor.flatten()
    whole = flat.numel() - flat.numel() % _NORM_BLOCK
    blocks = torch.linalg.vector_norm(flat[:whole].view(-1, _NORM_BLOCK), dim=1)
    return torch.cat([blocks, flat[whole:]]).double().square().sum()
