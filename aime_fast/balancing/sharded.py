"""Where a task's gradient lives: whole per parameter, whole and flat, or this rank's ZeRO partition.

A *row* is one task's gradient as a list of float32 tensors, averaged over micro-batches and ranks; `None` stands for
zero. Every layout answers the same calls, so the balancing and the engines know nothing of ranks:

    add(task, gradients, last)   one micro-batch's local gradients of one task join that task's row
    rows()                       all rows, complete: what `RGB.balance` takes
    reduce                       sums a small tensor over the ranks that hold different shards, or None
    merge(update)                the balanced update in the form that is stepped
    place(update)                hands the update to the optimiser
    clear()                      forgets rows and placed gradients

Gradients come from `torch.autograd.grad`, not from `loss.backward()`: no `.grad` is touched, so none of DeepSpeed's
backward hooks run and several backward passes over one graph need no repair of its counters. What remains is one
reduction a task, done here straight into the partition that ZeRO's own optimiser steps.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Row = list[Tensor | None]
Reduce = Callable[[Tensor], Tensor]


class Rows(Protocol):
    """A layout of the task gradients; see the module's docstring for what each call means."""

    reduce: Reduce | None

    def add(self, task: int, gradients: Sequence[Tensor | None], last: bool) -> None:
        """Add one micro-batch's gradients of `task`, already scaled; `last` marks the step's last micro-batch."""
        ...

    def rows(self) -> list[Row]:
        """Every task's row, once the last micro-batch was added."""
        ...

    def merge(self, update: Row) -> Row:
        """The balanced update, averaged over ranks where that has not happened before."""
        ...

    def place(self, update: Row) -> None:
        """Put the update where the optimiser reads its gradient."""
        ...

    def clear(self) -> None:
        """Drop the rows and the placed gradient."""
        ...


def owned(gradients: Iterable[Tensor | None]) -> Row:
    """The gradients as tensors that may be overwritten in place: copies where autograd shares or expands storage.

    Autograd may hand out one tensor for two parameters (a sum's gradient) or a stride-0 expansion of a scalar.
    """
    seen: set[int] = set()
    row: Row = []
    for gradient in gradients:
        if gradient is not None:
            storage = gradient.untyped_storage().data_ptr()
            if storage in seen or gradient.dtype != torch.float32 or not gradient.is_contiguous():
                gradient = gradient.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
            seen.add(storage)
        row.append(gradient)
    return row


class ParameterRows:
    """One process: a row is the list of whole parameter gradients, taken over from autograd without a copy."""

    reduce: Reduce | None = None

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._rows: dict[int, Row] = {}

    def add(self, task: int, gradients: Sequence[Tensor | None], last: bool) -> None:
        """Add gradients aligned with the parameters."""
        if task not in self._rows:
            self._rows[task] = owned(gradients)
            return
        row, old, new = self._rows[task], [], []
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            have = row[index]
            if have is None:
                row[index] = owned([gradient])[0]
            else:
                old.append(have)
                new.append(gradient.to(torch.float32))
        if old:
            torch._foreach_add_(old, new)

    def rows(self) -> list[Row]:
        """The rows in task order."""
        return [self._rows[task] for task in sorted(self._rows)]

    def merge(self, update: Row) -> Row:
        """The update itself: nothing is left to average."""
        return update

    def place(self, update: Row) -> None:
        """Set each parameter's `.grad`, in the parameter's own type."""
        for parameter, gradient in zip(self.parameters, update, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)

    def clear(self) -> None:
        """Free the rows and every `.grad`."""
        self._rows.clear()
        for parameter in self.parameters:
            parameter.grad = None


def any_nonfinite_poisons(total: Callable[[Tensor], Tensor]) -> Reduce:
    """A `reduce` for ranks that balance alone: keeps the local Gram matrix, but NaN everywhere if any rank's is.

    `total` sums a tensor over the ranks. 0 * x is 0 for finite x and NaN otherwise, so one sum makes all ranks agree.
    """

    def reduce(gram: Tensor) -> Tensor:
        return gram + total(gram * 0).sum()

    return reduce


def global_norm(tensors: Iterable[Any], reduce: Reduce | None, device: torch.device) -> Tensor:
    """Euclidean norm of all entries, shards of other ranks included: 0-d float32, without a host sync."""
    present = [tensor for tensor in tensors if tensor is not None]
    if not present:
        norm = torch.zeros((), device=device)
    else:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(present)))
    return norm if reduce is None else reduce(norm.square()).sqrt()
