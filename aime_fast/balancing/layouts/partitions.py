"""Parameters as flat buffers, cut into shards by DeepSpeed: the one file that knows its private attributes.

Every rank owns an equal, contiguous part of a buffer, its shard. ZeRO-1 and 2 lay parameters one after the other and
cut the whole; ZeRO-3 cuts each parameter and lays the parts one after the other. Private: `bit16_groups`,
`bit16_groups_flat` and `averaged_gradients` of the ZeRO-1/2 optimiser, `ds_tensor` of a ZeRO-3 parameter. DeepSpeed
is pinned because of them; `tests/training/test_zero_equivalence.py` fails if a version changes them.
"""

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aime_fast.balancing.layouts.reach import Reach, parts

_ALIGNED = 32
"""Entries in 128 bytes: where parameters start in a buffer of ours, so that vectors of them lie in one cache line."""


@dataclass(frozen=True)
class FlatGroup:
    """Where parameters lie in one flat buffer of `numel` entries, padding included."""

    indices: tuple[int, ...]
    """Positions of the buffer's parameters in the list of all trainable parameters."""
    offsets: tuple[int, ...]
    """Where each of them starts in the buffer, or in every shard where each is cut."""
    sizes: tuple[int, ...]
    """Entries of each parameter."""
    numel: int
    """Length of the buffer, a multiple of the number of shards."""
    cuts: int = 1
    """Shards into which each parameter is cut by itself (ZeRO-3); 1 keeps it in one piece."""

    def pieces(self, flat: Tensor, position: int) -> list[Tensor]:
        """Views of the buffer `flat` that make up the parameter at `position`, in its own order; padding left out."""
        offset, size = self.offsets[position], self.sizes[position]
        part, shards = -(-size // self.cuts), flat.view(self.cuts, -1)
        return [
            shards[cut, offset : offset + min(part, size - cut * part)] for cut in range(self.cuts) if cut * part < size
        ]

    def views(self, flat: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
        """`pieces` of every parameter, and what must be zeroed before they are written: all that lies between them."""
        if self.cuts > 1:
            return [self.pieces(flat, position) for position in range(len(self.sizes))], [flat]
        lengths: list[int] = []
        padding: list[int] = []
        end = 0
        for offset, size in [*zip(self.offsets, self.sizes, strict=True), (self.numel, 0)]:
            if offset > end:
                padding.append(len(lengths))
                lengths.append(offset - end)
            lengths.append(size)
            end = offset + size
        views = list(flat.split(lengths)[:-1])
        zeros = [views.pop(index) for index in reversed(padding)]
        return [[view] for view in views], zeros


class Partition:
    """Flat tensors that an optimiser steps instead of the parameters, one for each buffer."""

    whole: ClassVar[bool] = False
    """Whether the optimiser steps whole buffers on every rank, not this rank's shards."""

    def __init__(self) -> None:
        self.groups: list[FlatGroup] = []
        self._shards: list[Tensor] = []

    def place(self, number: int, shard: Tensor) -> None:
        """Make `shard` the gradient of this rank's part of buffer `number`."""
        self._shards[number].grad = shard

    def clear(self) -> None:
        """Drop the gradients."""
        for shard in self._shards:
            shard.grad = None


class WholePartition(Partition):
    """No shards: the module's parameters become views of a few flat buffers, and the optimiser steps those.

    One buffer for each large child of the module (or for what the same tasks reach, where that is known) and each of
    the optimiser's groups, so that what a task does not reach costs nothing: its vector has no such buffer.

    Args:
        module: on its device; its parameters keep their values, and lie contiguous afterwards.
        optimizer: any optimiser over its trainable parameters, without state yet; it is pointed at the buffers.
        shards: the length of each buffer is a multiple of it.
        reach: the tasks that reach each trainable parameter.
    """

    whole = True

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, shards: int = 1, reach: Reach | None = None
    ) -> None:
        super().__init__()
        names = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        position = {id(parameter): index for index, (_, parameter) in enumerate(names)}
        keys: Sequence[Hashable] = reach or [name.partition(".")[0] for name, _ in names]
        for group in optimizer.param_groups:
            own = []
            chosen = [position[id(parameter)] for parameter in group["params"]]
            for part in parts([p.numel() for p in group["params"]], [keys[index] for index in chosen]):
                members = [group["params"][index] for index in part]
                # Parameters that end inside a cache line come last: those before them start at the start of one.
                members.sort(key=lambda parameter: parameter.numel() % _ALIGNED != 0)
                sizes = [parameter.numel() for parameter in members]
                *starts, numel = accumulate((-(-size // _ALIGNED) * _ALIGNED for size in sizes), initial=0)
                own.append(members[0].new_zeros(-(-numel // shards) * shards))
                for parameter, start, size in zip(members, starts, sizes, strict=True):
                    own[-1][start : start + size] = parameter.detach().flatten()
                    parameter.data = own[-1][start : start + size].view(parameter.shape)
                indices = tuple(position[id(parameter)] for parameter in members)
                self.groups.append(FlatGroup(indices, tuple(starts), tuple(sizes), len(own[-1])))
            group["params"] = own
            self._shards += own


def divide(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], reach: Reach) -> None:
    """Divide the optimiser's groups by the tasks that reach their parameters: under ZeRO each becomes a buffer.

    parameters: all trainable ones, in the order of `reach`.
    """
    tasks = {id(parameter): reaching for parameter, reaching in zip(parameters, reach, strict=True)}
    optimizer.param_groups[:] = [
        {**group, "params": [group["params"][index] for index in part]}
        for group in optimizer.param_groups
        for part in parts([p.numel() for p in group["params"]], [tasks[id(p)] for p in group["params"]])
    ]


class OptimizerPartition(Partition):
    """ZeRO-1/2: parameters whole on every rank, the optimiser's copy of them in shards.

    Args:
        optimizer: DeepSpeed's ZeRO-1/2 optimiser; the storage of each parameter gives its place in the buffer.
        parameters: all trainable parameters.
    """

    def __init__(self, optimizer: Any, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        position = {id(parameter): index for index, parameter in enumerate(parameters)}
        self.optimizer = optimizer
        self.groups = [
            FlatGroup(
                tuple(position[id(parameter)] for parameter in group),
                tuple((parameter.data_ptr() - flat.data_ptr()) // flat.element_size() for parameter in group),
                tuple(parameter.numel() for parameter in group),
                flat.numel(),
            )
            for group, flat in zip(optimizer.bit16_groups, optimizer.bit16_groups_flat, strict=True)
        ]

    def place(self, number: int, shard: Tensor) -> None:
        """Make `shard` the averaged gradient of the optimiser's partition `number`."""
        self.optimizer.averaged_gradients[number] = [shard]


class ParameterPartition(Partition):
    """ZeRO-3: between steps a rank keeps only its shard of each parameter, and the optimiser steps those shards.

    DeepSpeed cuts and gathers the parameters. Its module hooks are left out: they gather a module at a time, find
    tensors in plain outputs only (the model returns records), and count one backward pass a step. One gather of all
    parameters a step suits models that fit, moves the least, and cannot hang: every rank asks at the same point.

    Args:
        module: a module with equal weights on all ranks.
        optimizer: any optimiser over its trainable parameters, without state yet; it is pointed at the shards.
        rank: this process.
        world_size: number of shards.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world_size: int) -> None:
        import deepspeed

        super().__init__()
        self.parameters = list(module.parameters())
        position = {id(p): index for index, p in enumerate(p for p in self.parameters if p.requires_grad)}
        # DeepSpeed would otherwise replace torch's linear function, in the whole process.
        zero = {"stage": 3, "memory_efficient_linear": False}
        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
        sizes = {id(parameter): parameter.numel() for parameter in self.parameters}
        deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=torch.float32)
        for group in optimizer.param_groups:
            members: list[Any] = group["params"]
            *offsets, numel = accumulate((len(p.ds_tensor) for p in members), initial=0)
            # One flat tensor for the optimiser; padding, which DeepSpeed leaves undefined, is zero in it.
            shard = self.parameters[0].new_zeros(numel)
            for parameter, offset in zip(members, offsets, strict=True):
                part = len(parameter.ds_tensor)
                own = min(max(sizes[id(parameter)] - rank * part, 0), part)
                shard[offset : offset + own] = parameter.ds_tensor[:own]
                parameter.ds_tensor.data = shard[offset : offset + part]
            group["params"] = [shard]
            self._shards.append(shard)
            indices, lengths = tuple(position[id(p)] for p in members), tuple(sizes[id(p)] for p in members)
            self.groups.append(FlatGroup(indices, tuple(offsets), lengths, numel * world_size, world_size))

    def gathered(self, changed: bool = False) -> AbstractContextManager[None]:
        """All parameters whole while it is open, frozen ones included; collective.

        What is written to them is lost, unless `changed`: then every rank keeps rank 0's values.
        """
        import deepspeed

        return deepspeed.zero.GatheredParameters(self.parameters, modifier_rank=0 if changed else None)


def stored(parameter: nn.Parameter) -> Tensor:
    """The memory that holds this process's part of a parameter: its shard under ZeRO-3, else all of it.

    Two parameters of one shape are cut alike, so that entries of one stand beside those of the other.
    """
    return getattr(parameter, "ds_tensor", parameter.data)
