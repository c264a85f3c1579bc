"""What one of several ranks does otherwise than a process alone: it balances shards, and rounds what it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aime_fast.balancing.layouts.collectives import added, narrowed, widened
from aime_fast.balancing.layouts.reach import merged, parts
from aime_fast.balancing.layouts.rounded import BLOCK
from aime_fast.planning.counting import Counting, Kernel, Part
from aime_fast.planning.rehearsal import Rehearsal, Sending
from aime_fast.profiling.phases import phase


def on_a_rank(
    kernels: Sequence[Kernel], seen: Rehearsal, ranks: int, stage: int, sending: Sending, micro_batches: int = 1
) -> tuple[Kernel, ...]:
    """The kernels of a step on each of `ranks` ranks, given those of a process alone.

    Both passes of the balancing are over 1/ranks of the vectors, and with ZeRO-1 to 3 the optimiser's step is over as
    much. What rounds and adds up comes last, in a phase of its own: nothing is taken to run beside it.
    """
    if ranks == 1:
        return tuple(kernels)
    own = [_of_shards(kernel, ranks) if _is_on_shards(kernel, stage) else kernel for kernel in kernels]
    return *own, *_rounding(seen, ranks, stage, sending, micro_batches)


def _is_on_shards(kernel: Kernel, stage: int) -> bool:
    return kernel.phase == "balance" or (stage > 0 and (kernel.phase == "step" or "Optimizer" in kernel.phase))


def _of_shards(kernel: Kernel, ranks: int) -> Kernel:
    def cut(whole: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(part._replace(bytes=-(-part.bytes // ranks)) for part in whole)

    return replace(kernel, flops=kernel.flops / ranks, reads=cut(kernel.reads), writes=cut(kernel.writes))


def _rounding(seen: Rehearsal, ranks: int, stage: int, sending: Sending, micro_batches: int) -> list[Kernel]:
    """The calls of `collectives.py` around what is sent, with one buffer for all that the same tasks reach."""
    counting = Counting()
    with FakeTensorMode(), counting, phase("rounding"):
        for positions in parts(seen.sizes, seen.reach):
            shard = -(-sum(seen.sizes[position] for position in positions) // (ranks * BLOCK)) * BLOCK
            for _ in range(len(merged(seen.reach, positions)) * (micro_batches if stage >= 2 else 1)):
                if sending.gradients != torch.float32:
                    added(torch.empty(ranks * shard, dtype=sending.gradients), ranks)
            if stage == 0:
                message = narrowed(torch.empty(shard), sending.update)
                widened(torch.empty(ranks * len(message), dtype=message.dtype), ranks, sending.update)
    return counting.kernels
