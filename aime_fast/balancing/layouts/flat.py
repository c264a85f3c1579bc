"""Task gradients in flat buffers: one process, whole vectors over ranks, and ZeRO shards.

Gradients come from `torch.autograd.grad`, not from `loss.backward()`: no `.grad` is touched, so none of DeepSpeed's
backward hooks run, and several backward passes over one graph leave its counters alone. What remains is one reduction a
task, done here straight into the shards that the optimiser steps (`partitions.py`), while the next task's backward pass
runs. The price is that one task's whole gradient lives on each rank until it is reduced. One process uses flat buffers
too: a few long tensors take a third of the operator calls that many short ones take.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from aime_fast.balancing.layouts.cut import Cut, Piece
from aime_fast.balancing.layouts.layout import Layout
from aime_fast.balancing.layouts.partitions import Partition
from aime_fast.balancing.layouts.sample import Sample
from aime_fast.balancing.vectors import Vector

# torch 2.13 gave it this name and warns of the older one.
_reduce_scatter = dist.reduce_scatter_single if hasattr(dist, "reduce_scatter_single") else dist.reduce_scatter_tensor


class FlatLayout(Layout):
    """A vector is one flat float32 tensor a buffer, whole on every rank or this rank's contiguous shard.

    Args:
        parameters: all trainable parameters, in the order of the gradients.
        partition: the buffers, and what the optimiser steps.
        world_size: ranks of the default process group, 1 without one.
        sharded: each rank keeps its shard of every buffer; otherwise all keep the whole.
        reduce_each: reduce every micro-batch instead of adding whole gradients up until the last one (ZeRO-2, 3).
        overlap: reduce a task's gradient while the next task's backward pass runs.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        partition: Partition,
        world_size: int = 1,
        sharded: bool = False,
        reduce_each: bool = False,
        overlap: bool = True,
    ) -> None:
        super().__init__()
        self.parameters = list(parameters)
        self.partition = partition
        self.buffers = partition.groups
        self.world_size = world_size
        self.shards = world_size if sharded else 1
        """Shards of a buffer."""
        self.reduce_each = reduce_each
        self.overlap = overlap
        self.tasks_reaching = [set() for _ in self.parameters]
        self._device = self.parameters[0].device
        self._vectors: dict[int, Vector] = {}
        self._local: dict[int, Vector] = {}
        self._under_way: tuple[int, Vector, list[dist.Work]] | None = None

    def add(self, task: int, gradients: Sequence[Tensor | None], last: bool) -> None:
        """Add one micro-batch's gradients of a task, aligned with the parameters and already scaled to a mean.

        Begins to reduce them where there is something to reduce. last: this is the step's last micro-batch.
        """
        self._finish()
        if self._segments is None:
            for tasks, gradient in zip(self.tasks_reaching, gradients, strict=True):
                if gradient is not None:
                    tasks.add(task)
        flats = self._flatten(gradients)
        if task in self._local:
            flats = _sum(self._local.pop(task), flats)
        if not (last or self.reduce_each):
            self._local[task] = flats
            return
        reduced = [(None, None) if flat is None else self._reduce(flat) for flat in flats]
        self._under_way = task, [shard for shard, _ in reduced], [work for _, work in reduced if work is not None]
        if not self.overlap:
            self._finish()

    def _flatten(self, gradients: Sequence[Tensor | None]) -> Vector:
        """One flat tensor a buffer; None where no gradient reaches it. One copy and one fill serve all buffers."""
        flats: Vector = []
        zeros: list[Tensor] = []
        views: list[Tensor] = []
        present: list[Tensor] = []
        for buffer in self.buffers:
            if self.world_size == 1 and all(gradients[index] is None for index in buffer.indices):
                flats.append(None)  # with other ranks there is a reduction to take part in
                continue
            flat = torch.empty(buffer.numel, device=self._device)
            flats.append(flat)
            parameters, padding = buffer.views(flat)
            zeros += padding
            for index, pieces in zip(buffer.indices, parameters, strict=True):
                gradient = gradients[index]
                if gradient is None:
                    zeros += pieces
                elif len(pieces) != 1:  # an empty parameter has none where parameters are cut
                    views += pieces
                    present += gradient.flatten().split([len(piece) for piece in pieces])
                elif gradient.is_contiguous():
                    views += pieces
                    present.append(gradient.flatten())
                else:
                    pieces[0].view(gradient.shape).copy_(gradient)
        if zeros:
            torch._foreach_zero_(zeros)
        if views:
            torch._foreach_copy_(views, present)
        return flats

    def _reduce(self, flat: Tensor) -> tuple[Tensor, dist.Work | None]:
        if self.world_size == 1:
            return flat, None
        if self.shards == 1:
            return flat, dist.all_reduce(flat, async_op=True)
        shard = flat.new_empty(flat.numel() // self.world_size)
        return shard, _reduce_scatter(shard, flat, async_op=True)

    def _finish(self) -> None:
        if self._under_way is None:
            return
        task, shards, works = self._under_way
        self._under_way = None
        for work in works:
            work.wait()
        self._vectors[task] = _sum(self._vectors[task], shards) if task in self._vectors else shards

    def vectors(self) -> list[Vector]:
        """The reduced task gradients; None where one process reaches no parameter of a buffer."""
        self._finish()
        return [self._vectors[task] for task in sorted(self._vectors)]

    def new_sample(self, tasks: int) -> Sample:
        """Memory for the sample of this rank's vectors."""
        sizes = {i: size for buffer in self.buffers for i, size in zip(buffer.indices, buffer.sizes, strict=True)}
        return Sample(self.cuts(), sizes, tasks, self._device)

    def total(self, grams: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both summed over the ranks, by one all-reduce at most."""
        if self.world_size == 1 or (losses is None and self.shards == 1):
            return grams, losses
        copies = self.world_size // self.shards  # ranks with whole vectors all have the complete Gram matrices
        numbers = grams.flatten() if losses is None else torch.cat([grams.flatten() / copies, losses])
        dist.all_reduce(numbers)
        total = numbers[: grams.numel()].view_as(grams)
        return total, None if losses is None else numbers[grams.numel() :]

    def place(self, update: Vector) -> None:
        """Give the optimiser its part of an update."""
        for number, (buffer, flat) in enumerate(zip(self.buffers, update, strict=True)):
            zeros = torch.zeros(buffer.numel // self.shards, device=self._device) if flat is None else flat
            self.partition.place(number, zeros)

    def clear(self) -> None:
        """Forget the task gradients, the update and what was placed, also in the middle of a step."""
        self._under_way = None
        self._local.clear()
        self._vectors.clear()
        self.update = []
        self.partition.clear()

    def cuts(self) -> list[Cut]:
        """This rank's shard of each buffer, or the whole of it."""
        rank = dist.get_rank() if self.shards > 1 else 0
        cuts = []
        for buffer in self.buffers:
            pieces, length = [], buffer.numel // self.shards
            for index, offset, size in zip(buffer.indices, buffer.offsets, buffer.sizes, strict=True):
                if buffer.cuts == 1:
                    low, high = max(offset, rank * length), min(offset + size, (rank + 1) * length)
                    piece = Piece(index, low - offset, low - rank * length, high - low)
                else:
                    part = -(-size // buffer.cuts)
                    piece = Piece(index, rank * part, offset, min(part, size - rank * part))
                if piece.numel > 0:
                    pieces.append(piece)
            cuts.append(Cut((length,), tuple(pieces)))
        return cuts


def _sum(one: Vector, other: Vector) -> Vector:
    """The sum of two vectors, in the memory of the first where it has some."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if pairs:
        torch._foreach_add_(*(list(tensors) for tensors in zip(*pairs, strict=True)))
    return [b if a is None else a for a, b in zip(one, other, strict=True)]
