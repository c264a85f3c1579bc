"""Flat rows: whole or sharded, reduced over processes a task at a time while the next backward pass runs.

One process uses them too: a few long tensors are balanced in a third of the operator calls that many short ones take,
and in half of the time on a CPU, which pays for the copy.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from aime_fast.balancing.layouts.layout import (
    Cut,
    ParameterRows,
    Piece,
    Reduce,
    nonfinite_poisons_all,
    total_over_ranks,
)
from aime_fast.balancing.layouts.partitions import FlatGroup, Partition
from aime_fast.balancing.vectors import Vector


class FlatRows:
    """A row is one flat float32 tensor a group, whole on every rank or this rank's contiguous shard.

    Args:
        parameters: all trainable parameters, in the order of the gradients.
        groups: the flat buffers.
        world_size: ranks of the default process group, 1 without one.
        partition: the shards that rows are reduced to, of the same groups; None keeps whole rows.
        reduce_each: reduce every micro-batch instead of adding whole gradients up until the last one (ZeRO-2, 3).
        overlap: reduce a task's gradient while the next task's backward pass runs.
    """

    averages = False

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        groups: Sequence[FlatGroup],
        world_size: int,
        partition: Partition | None = None,
        reduce_each: bool = False,
        overlap: bool = True,
    ) -> None:
        self.parameters = list(parameters)
        self.groups = list(groups)
        self.world_size = world_size
        self.partition = partition
        self.reduce_each = reduce_each
        self.overlap = overlap
        self._device = self.parameters[0].device
        self._shards = 1 if partition is None else world_size
        self.reduce: Reduce | None = total_over_ranks if self._shards > 1 else None
        self.norm_reduce: Reduce | None = self.reduce
        self._rows: dict[int, Vector] = {}
        self._local: dict[int, Vector] = {}
        self._under_way: tuple[int, Vector, list[tuple[dist.Work, Tensor]]] | None = None

    def add(self, task: int, gradients: Sequence[Tensor | None], last: bool) -> None:
        """Flatten gradients aligned with the parameters and begin to reduce them, once there is something to reduce."""
        self._finish()
        flats = [self._flatten(group, gradients) for group in self.groups]
        if task in self._local:
            flats = _sum(flats, self._local.pop(task))
        if not (last or self.reduce_each):
            self._local[task] = flats
            return
        shards: Vector = []
        works = []
        for flat in flats:
            shard, work = (None, None) if flat is None else self._reduce(flat)
            shards.append(shard)
            if work is not None and flat is not None:
                works.append((work, flat))
        self._under_way = (task, shards, works)
        if not self.overlap:
            self._finish()

    def _flatten(self, group: FlatGroup, gradients: Sequence[Tensor | None]) -> Tensor | None:
        if self.world_size == 1 and all(gradients[index] is None for index in group.indices):
            return None  # with other ranks there is a reduction to take part in
        flat = torch.empty(group.numel, device=self._device)
        parameters, zeros = group.views(flat)
        views: list[Tensor] = []
        present: list[Tensor] = []
        for index, pieces in zip(group.indices, parameters, strict=True):
            gradient = gradients[index]
            if gradient is None:
                zeros += pieces
                continue
            entries = gradient.flatten()
            views += pieces
            present += [entries] if len(pieces) == 1 else entries.split([len(piece) for piece in pieces])
        if zeros:
            torch._foreach_zero_(zeros)
        if views:
            torch._foreach_copy_(views, present)
        return flat

    def _reduce(self, flat: Tensor) -> tuple[Tensor, dist.Work | None]:
        if self.world_size == 1:
            return flat, None
        if self.partition is None:
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
        self._rows[task] = _sum(self._rows[task], shards) if task in self._rows else shards

    def rows(self) -> list[Vector]:
        """The reduced rows in task order, one tensor a group; None where one process reaches no parameter of it."""
        self._finish()
        return [list(self._rows[task]) for task in sorted(self._rows)]

    def merge(self, update: Vector) -> Vector:
        """The update itself: the rows were averages already."""
        return update

    def place(self, update: Vector) -> None:
        """Give each shard to the partition, or each parameter its view of the whole."""
        for number, (group, flat) in enumerate(zip(self.groups, update, strict=True)):
            if flat is None:
                flat = torch.zeros(group.numel // self._shards, device=self._device)
            if self.partition is not None:
                self.partition.place(number, flat)
                continue
            for index, (entries,) in zip(group.indices, group.views(flat)[0], strict=True):
                parameter = self.parameters[index]
                parameter.grad = entries.view(parameter.shape)

    def cuts(self) -> list[Cut]:
        """This rank's shard of each group, or the whole of it."""
        rank = dist.get_rank() if self._shards > 1 else 0
        cuts = []
        for group in self.groups:
            pieces, length = [], group.numel // self._shards
            for index, offset, size in zip(group.indices, group.offsets, group.sizes, strict=True):
                if group.cuts == 1:
                    low, high = max(offset, rank * length), min(offset + size, (rank + 1) * length)
                    piece = Piece(index, low - offset, low - rank * length, high - low)
                else:
                    part = -(-size // group.cuts)
                    piece = Piece(index, rank * part, offset, min(part, size - rank * part))
                if piece.numel > 0:
                    pieces.append(piece)
            cuts.append(Cut((length,), tuple(pieces)))
        return cuts

    def clear(self) -> None:
        """Free the rows and every gradient."""
        self._rows.clear()
        for parameter in self.parameters:
            parameter.grad = None
        if self.partition is not None:
            self.partition.clear()


def _sum(one: Vector, other: Vector) -> Vector:
    """The sum of two vectors, in the memory of the first where it has some."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if pairs:
        torch._foreach_add_(*(list(tensors) for tensors in zip(*pairs, strict=True)))
    return [b if a is None else a for a, b in zip(one, other, strict=True)]


class LocalRows:
    """Many processes that each balance their own gradients; only the balanced update is averaged.

    Different mathematics from one process with the whole batch: a conflict between ranks is averaged, not rotated. It
    reduces one vector a step instead of one a task.
    """

    averages = True

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
