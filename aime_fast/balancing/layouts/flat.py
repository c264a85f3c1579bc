"""Task gradients in flat buffers, on one process or as shards over ranks.

Gradients come from `torch.autograd.grad`, not from `loss.backward()`: no `.grad` is touched, so none of DeepSpeed's
backward hooks run, and several backward passes over one graph leave its counters alone. What remains is one reduction
a task, done here straight into shards (`collectives.py`), while the next task's backward pass runs. A task takes no
part in buffers that it does not reach: they are neither filled, nor sent, nor kept. The price is that one task's whole
gradient lives on each rank until it is reduced. One process uses flat buffers too: a few long tensors take a third of
the operator calls that many short ones take.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from aime_fast.balancing.layouts.collectives import Reduction, gathered
from aime_fast.balancing.layouts.cut import Cut, Piece
from aime_fast.balancing.layouts.layout import Layout
from aime_fast.balancing.layouts.partitions import FlatGroup, Partition
from aime_fast.balancing.layouts.reach import Reach, merged
from aime_fast.balancing.layouts.sample import Sample
from aime_fast.balancing.vectors import Vector


class FlatLayout(Layout):
    """A vector is one flat float32 tensor a buffer: the whole of it on one process, else this rank's contiguous shard.

    Args:
        parameters: all trainable parameters, in the order of the gradients.
        partition: the buffers, and what the optimiser steps.
        world_size: ranks of the default process group, 1 without one.
        reduce_each: reduce every micro-batch instead of adding whole gradients up until the last one (ZeRO-2, 3).
        overlap: reduce a task's gradient while the next task's backward pass runs.
        reach: the tasks that can reach each parameter, equal on all ranks. None: with several ranks every task counts
            as reaching all, because a rank cannot know what the others' gradients reach.
        dtype: of gradients while they are sent, float32 or bfloat16.
        update_dtype: of an update that is gathered, while it is sent: as `gathered` takes it; None is `dtype`.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        partition: Partition,
        world_size: int = 1,
        reduce_each: bool = False,
        overlap: bool = True,
        reach: Reach | None = None,
        dtype: torch.dtype = torch.float32,
        update_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.parameters = list(parameters)
        self.partition = partition
        self.buffers = partition.groups
        self.world_size = world_size
        """Ranks, and shards of a buffer."""
        self.reduce_each = reduce_each
        self.overlap = overlap
        self.dtype = dtype
        self.update_dtype = update_dtype or dtype
        self.reach = reach
        self.buffer_reach = None if reach is None else [merged(reach, buffer.indices) for buffer in self.buffers]
        """The tasks that reach each buffer, where that is known."""
        self.tasks_reaching = [set(reach[index]) if reach else set() for index in range(len(self.parameters))]
        self._device = self.parameters[0].device
        self._checked: set[int] = set()
        self._vectors: dict[int, Vector] = {}
        self._local: dict[int, Vector] = {}
        self._under_way: tuple[int, list[Reduction | None]] | None = None

    def add(self, task: int, gradients: Sequence[Tensor | None], last: bool) -> None:
        """Add one micro-batch's gradients of a task, aligned with the parameters and already scaled to a mean.

        Begins to reduce them where there is something to reduce. last: this is the step's last micro-batch.
        """
        self._finish()
        self._learn(task, gradients)
        sent = self.world_size > 1 and (last or self.reduce_each) and task not in self._local
        flats = self._flatten(task, gradients, self.dtype if sent else torch.float32)
        if task in self._local:
            flats = _sum(self._local.pop(task), flats)
        if not (last or self.reduce_each):
            self._local[task] = flats
            return
        reductions = [None if flat is None else Reduction(flat, self.world_size, self.dtype) for flat in flats]
        self._under_way = task, reductions
        if not self.overlap:
            self._finish()

    def _learn(self, task: int, gradients: Sequence[Tensor | None]) -> None:
        """Note which parameters a task reaches; where that was given, check it at the task's first gradient.

        The check waits for the device. Raises RuntimeError for a gradient that would be lost: a compiled region returns
        zeros for what a task does not reach, so zeros are not an error.
        """
        if self.reach is None:
            if self._segments is None:
                for found, gradient in zip(self.tasks_reaching, gradients, strict=True):
                    if gradient is not None:
                        found.add(task)
        elif task not in self._checked:
            self._checked.add(task)
            for position, (tasks, gradient) in enumerate(zip(self.reach, gradients, strict=True)):
                if task not in tasks and gradient is not None and (gradient.isfinite() & (gradient != 0)).any():
                    raise RuntimeError(f"task {task} reaches parameter {position}, which the trial pass did not show")

    def _takes_part(self, task: int, number: int, gradients: Sequence[Tensor | None]) -> bool:
        """Whether the task's vector has a tensor for buffer `number`; equal on all ranks."""
        if self.buffer_reach is not None and task not in self.buffer_reach[number]:
            return False
        return self.world_size > 1 or any(gradients[index] is not None for index in self.buffers[number].indices)

    def _flatten(self, task: int, gradients: Sequence[Tensor | None], dtype: torch.dtype) -> Vector:
        """One flat tensor a buffer; None where the task has none. One copy and one fill serve all buffers.

        dtype: bfloat16 where nothing is added before it is sent, which saves a pass.
        """
        flats: Vector = []
        zeros: list[Tensor] = []
        views: list[Tensor] = []
        present: list[Tensor] = []
        for number, buffer in enumerate(self.buffers):
            if not self._takes_part(task, number, gradients):
                flats.append(None)
                continue
            flat = torch.empty(buffer.numel, dtype=dtype, device=self._device)
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

    def _finish(self) -> None:
        if self._under_way is None:
            return
        task, reductions = self._under_way
        self._under_way = None
        shards = [None if reduction is None else reduction.shard() for reduction in reductions]
        self._vectors[task] = _sum(self._vectors[task], shards) if task in self._vectors else shards

    def vectors(self) -> list[Vector]:
        """The reduced task gradients; None where a task reaches no parameter of a buffer."""
        self._finish()
        return [self._vectors[task] for task in sorted(self._vectors)]

    def new_sample(self, tasks: int) -> Sample:
        """Memory for the sample of this rank's vectors."""
        sizes = {i: size for buffer in self.buffers for i, size in zip(buffer.indices, buffer.sizes, strict=True)}
        return Sample(self.cuts(), sizes, tasks, self._device)

    def total(self, grams: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both summed over the ranks, by one all-reduce at most."""
        if self.world_size == 1:
            return grams, losses
        numbers = grams.flatten() if losses is None else torch.cat([grams.flatten(), losses])
        dist.all_reduce(numbers)
        total = numbers[: grams.numel()].view_as(grams)
        return total, None if losses is None else numbers[grams.numel() :]

    def place(self, update: Vector) -> None:
        """Give the optimiser its part of an update: shards, or all of it where it steps whole buffers."""
        shards = [
            torch.zeros(buffer.numel // self.world_size, device=self._device) if flat is None else flat
            for buffer, flat in zip(self.buffers, update, strict=True)
        ]
        if self.partition.whole and self.world_size > 1:
            shards = gathered(shards, self.world_size, self.update_dtype)
        for number, shard in enumerate(shards):
            self.partition.place(number, shard)

    def clear(self) -> None:
        """Forget the task gradients, the update and what was placed, also in the middle of a step."""
        self._under_way = None
        self._local.clear()
        self._vectors.clear()
        self.update = []
        self.partition.clear()

    def cuts(self) -> list[Cut]:
        """This rank's shard of each buffer; with one process the whole of it."""
        rank = dist.get_rank() if self.world_size > 1 else 0
        return [_cut(buffer, rank, self.world_size) for buffer in self.buffers]

    def stepped_cuts(self) -> list[Cut]:
        """What the optimiser steps of each buffer."""
        return [_cut(buffer, 0, 1) for buffer in self.buffers] if self.partition.whole else self.cuts()


def _cut(buffer: FlatGroup, rank: int, shards: int) -> Cut:
    """Shard `rank` of `shards` of a buffer."""
    pieces, length = [], buffer.numel // shards
    for index, offset, size in zip(buffer.indices, buffer.offsets, buffer.sizes, strict=True):
        if buffer.cuts == 1:
            low, high = max(offset, rank * length), min(offset + size, (rank + 1) * length)
            piece = Piece(index, low - offset, low - rank * length, high - low)
        else:
            part = -(-size // buffer.cuts)
            piece = Piece(index, rank * part, offset, min(part, size - rank * part))
        if piece.numel > 0:
            pieces.append(piece)
    return Cut((length,), tuple(pieces))


def _sum(one: Vector, other: Vector) -> Vector:
    """The sum of two vectors, in the memory of the first where it has some."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if pairs:
        torch._foreach_add_(*(list(tensors) for tensors in zip(*pairs, strict=True)))
    return [b if a is None else a for a, b in zip(one, other, strict=True)]
