"""Where a task's gradient lives: whole per parameter, whole and flat, or this rank's ZeRO partition.

A *row* is one task's gradient as a list of float32 tensors, averaged over micro-batches and ranks; `None` stands for
zero. Every layout answers the same calls, so the balancing and the engines know nothing of ranks:

    add(task, gradients, last)   one micro-batch's local gradients of one task join that task's row
    rows()                       all rows, complete: what `RGB.balance` takes
    reduce                       sums the partial Gram matrix over the ranks that hold different shards, or None
    merge(update)                the balanced update in the form that is stepped
    norm_reduce                  sums squares of the merged update over the ranks that hold different shards, or None
    place(update)                hands the update to the optimiser
    clear()                      forgets rows and placed gradients
    cuts()                       which entries of which parameters each tensor of a row holds, so that state laid out
                                 like a row can be read by another layout

Gradients come from `torch.autograd.grad`, not from `loss.backward()`: no `.grad` is touched, so none of DeepSpeed's
backward hooks run and several backward passes over one graph need no repair of its counters. What remains is one
reduction a task, done here straight into the partition that ZeRO's own optimiser steps, while the next task's backward
pass runs. The price is that one task's whole gradient lives on each rank until it is reduced. This is the one file
that knows DeepSpeed's private attributes (`bit16_groups`, `bit16_groups_flat`, `averaged_gradients`), so DeepSpeed is
pinned.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
    """One process: a row is the list of whole parameter gradients, taken over from autograd without a copy."""

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


@dataclass(frozen=True)
class FlatGroup:
    """Where parameters lie in one flat buffer of `numel` entries, padding included."""

    indices: tuple[int, ...]
    """Positions of the group's parameters in the list of all trainable parameters."""
    offsets: tuple[int, ...]
    """Where each of them starts in the buffer."""
    numel: int
    """Length of the buffer, a multiple of the number of shards."""


def whole_group(parameters: Sequence[torch.nn.Parameter]) -> FlatGroup:
    """All parameters one after the other, without padding."""
    offsets, end = [], 0
    for parameter in parameters:
        offsets.append(end)
        end += parameter.numel()
    return FlatGroup(tuple(range(len(parameters))), tuple(offsets), end)


def zero_groups(optimizer: Any, parameters: Sequence[torch.nn.Parameter]) -> list[FlatGroup]:
    """The flat buffers of DeepSpeed's ZeRO-1/2 optimiser, read from where it has put each parameter's storage."""
    position = {id(parameter): index for index, parameter in enumerate(parameters)}
    return [
        FlatGroup(
            tuple(position[id(parameter)] for parameter in group),
            tuple((parameter.data_ptr() - flat.data_ptr()) // flat.element_size() for parameter in group),
            flat.numel(),
        )
        for group, flat in zip(optimizer.bit16_groups, optimizer.bit16_groups_flat, strict=True)
    ]


class FlatRows:
    """Many processes: a row is one flat float32 tensor a group, whole on every rank or this rank's contiguous shard.

    Args:
        parameters: all trainable parameters, in the order of the gradients.
        groups: the flat buffers.
        world_size: ranks of the default process group, 1 without one.
        zero_optimizer: DeepSpeed's ZeRO-1/2 optimiser, whose partitions the shards are; None keeps whole rows.
        reduce_each: reduce every micro-batch instead of adding whole gradients up until the last one (ZeRO-2).
        overlap: reduce a task's gradient while the next task's backward pass runs.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        groups: Sequence[FlatGroup],
        world_size: int,
        zero_optimizer: Any = None,
        reduce_each: bool = False,
        overlap: bool = True,
    ) -> None:
        self.parameters = list(parameters)
        self.groups = list(groups)
        self.world_size = world_size
        self.zero_optimizer = zero_optimizer
        self.reduce_each = reduce_each
        self.overlap = overlap
        sharded = zero_optimizer is not None and world_size > 1
        self.reduce: Reduce | None = total_over_ranks if sharded else None
        self.norm_reduce: Reduce | None = self.reduce
        self._rows: dict[int, list[Tensor]] = {}
        self._local: dict[int, list[Tensor]] = {}
        self._under_way: tuple[int, list[Tensor], list[tuple[dist.Work, Tensor]]] | None = None

    def add(self, task: int, gradients: Sequence[Tensor | None], last: bool) -> None:
        """Flatten gradients aligned with the parameters and begin to reduce them, once there is something to reduce."""
        self._finish()
        flats = [self._flatten(group, gradients) for group in self.groups]
        if task in self._local:
            torch._foreach_add_(flats, self._local.pop(task))
        if not (last or self.reduce_each):
            self._local[task] = flats
            return
        shards, works = [], []
        for flat in flats:
            shard, work = self._reduce(flat)
            shards.append(shard)
            if work is not None:
                works.append((work, flat))
        self._under_way = (task, shards, works)
        if not self.overlap:
            self._finish()

    def _flatten(self, group: FlatGroup, gradients: Sequence[Tensor | None]) -> Tensor:
        flat = torch.zeros(group.numel, device=self.parameters[0].device)
        views, present = [], []
        for index, offset in zip(group.indices, group.offsets, strict=True):
            gradient = gradients[index]
            if gradient is not None:
                views.append(flat[offset : offset + gradient.numel()].view(gradient.shape))
                present.append(gradient)
        if views:
            torch._foreach_copy_(views, present)
        return flat

    def _reduce(self, flat: Tensor) -> tuple[Tensor, dist.Work | None]:
        if self.world_size == 1:
            return flat, None
        if self.zero_optimizer is None:
            return flat, dist.all_reduce(flat, async_op=True)
        shard = flat.new_empty(flat.numel() // self.world_size)
        return shard, dist.reduce_scatter_single(shard, flat, async_op=True)

    def _finish(self) -> None:
        if self._under_way is None:
            return
        task, shards, works = self._under_way
        self._under_way = None
        for work, _ in works:
            work.wait()
        if task in self._rows:
            torch._foreach_add_(self._rows[task], shards)
        else:
            self._rows[task] = shards

    def rows(self) -> list[Vector]:
        """The reduced rows in task order, one tensor a group."""
        self._finish()
        return [list(self._rows[task]) for task in sorted(self._rows)]

    def merge(self, update: Vector) -> Vector:
        """The update itself: the rows were averages already."""
        return update

    def place(self, update: Vector) -> None:
        """Give each shard to ZeRO as its partition's averaged gradient, or each parameter its view of the whole."""
        for number, (group, flat) in enumerate(zip(self.groups, update, strict=True)):
            if flat is None:
                flat = torch.zeros(group.numel // self._shards, device=self.parameters[0].device)
            if self.zero_optimizer is not None:
                self.zero_optimizer.averaged_gradients[number] = [flat]
                continue
            for index, offset in zip(group.indices, group.offsets, strict=True):
                parameter = self.parameters[index]
                parameter.grad = flat[offset : offset + parameter.numel()].view(parameter.shape)

    @property
    def _shards(self) -> int:
        return self.world_size if self.zero_optimizer is not None else 1

    def clear(self) -> None:
        """Free the rows and every `.grad`; ZeRO has freed its own."""
        self._rows.clear()
        for parameter in self.parameters:
            parameter.grad = None

    def cuts(self) -> list[Cut]:
        """This rank's shard of each group, or the whole of it."""
        shard = dist.get_rank() if self._shards > 1 else 0
        cuts = []
        for group in self.groups:
            size = group.numel // self._shards
            first, pieces = shard * size, []
            for index, offset in zip(group.indices, group.offsets, strict=True):
                low = max(offset, first)
                high = min(offset + self.parameters[index].numel(), first + size)
                if low < high:
                    pieces.append(Piece(index, low - offset, low - first, high - low))
            cuts.append(Cut((size,), tuple(pieces)))
        return cuts


class LocalRows:
    """Many processes that each balance their own gradients; only the balanced update is averaged.

    Different mathematics from one process with the whole batch: a conflict between ranks is averaged, not rotated. It
    reduces one vector a step instead of one a task.
    """

    def __init__(self, shared: FlatRows) -> None:
        self.shared = shared
        self.own = ParameterRows(shared.parameters)
        self.reduce: Reduce | None = nonfinite_poisons_all(total_over_ranks)
        self.norm_reduce: Reduce | None = shared.norm_reduce

    def add(self, task: int, gradients: Sequence[Tensor | None], last: bool) -> None:
        """Keep the gradients on this rank."""
        self.own.add(task, gradients, last)

    def rows(self) -> list[Vector]:
        """This rank's whole rows."""
        return self.own.rows()

    def merge(self, update: Vector) -> Vector:
        """The mean of all ranks' updates."""
        present = [tensor for tensor in update if tensor is not None]
        if present:
            torch._foreach_mul_(present, 1.0 / self.shared.world_size)
        self.shared.add(0, update, last=True)
        self.own.clear()
        return self.shared.rows()[0]

    def place(self, update: Vector) -> None:
        """Hand the averaged update to the optimiser."""
        self.shared.place(update)

    def clear(self) -> None:
        """Free everything."""
        self.own.clear()
        self.shared.clear()

    def cuts(self) -> list[Cut]:
        """Whole parameters; the optimiser's tensors are cut as those of `shared`."""
        return self.own.cuts()


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
