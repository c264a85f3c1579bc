"""What a step sends: the bytes that leave one rank, by kind, without running anything.

Counted as ring algorithms send, which are the least for these collectives. Of N numbers on W ranks a reduce-scatter, an
all-gather and an exchange (all-to-all) each send N (W-1)/W from every rank, an all-reduce twice that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aime_fast.balancing.layouts.reach import Reach
from aime_fast.balancing.layouts.rounded import BYTES, CODE

_FLOAT = torch.float32.itemsize
_SUM = torch.float64.itemsize


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in one step."""

    by_task: tuple[float, ...]
    """Each task's gradient, to the ranks that keep its shards."""
    gathered: float
    """The updated parameters, or with ZeRO-0 the update."""
    sums: float
    """Gram matrices and products of samples."""

    @property
    def reduced(self) -> float:
        """All task gradients."""
        return sum(self.by_task)

    @property
    def total(self) -> float:
        """All that is sent."""
        return self.reduced + self.gathered + self.sums


def traffic(
    sizes: Sequence[int],
    reach: Reach,
    world_size: int,
    stage: int,
    dtype: torch.dtype = torch.float32,
    update_dtype: torch.dtype | None = None,
    *,
    tasks: int = 3,
    micro_batches: int = 1,
    frozen: int = 0,
    groups: int = 1,
    direction: bool = True,
) -> Traffic:
    """What `FlatLayout` and the optimiser send in one step, in bytes a rank.

    The model's own collectives (averages of the codebook, means over the batch) are not part of it.

    Args:
        sizes: entries of each buffer, padding included. Those of the parameters give the least that can be sent: no
            padding, and no parameters of unlike reach in one buffer.
        reach: the tasks that reach each of them.
        world_size: W, at least 1.
        stage: ZeRO stage, 0 to 3.
        dtype: of the gradients while they are sent: float32 or bfloat16.
        update_dtype: of ZeRO-0's update, as `FlatLayout` takes it; None is `dtype`.
        tasks: n.
        micro_batches: of a rank in a step. ZeRO-2 and 3 reduce each of them.
        frozen: entries of parameters without a gradient, which ZeRO-3 cuts and gathers too.
        groups: of parameters, each with a Gram matrix (`balancing.groups`: 1 for `all`, 2 for `shared`).
        direction: the solver keeps a consensus direction, as `rotation` does.
    """
    share = (world_size - 1) / world_size
    each = share * dtype.itemsize * (micro_batches if stage >= 2 else 1)
    known = list(zip(sizes, reach, strict=True))
    by_task = tuple(each * sum(size for size, found in known if task in found) for task in range(tasks))
    kept = sent_bytes(update_dtype or dtype) if stage == 0 else _FLOAT  # an update may be rounded, parameters may not
    gathered = (sum(sizes) + (frozen if stage == 3 else 0)) * kept
    sums = groups * (tasks + direction) ** 2 + 4 * tasks
    return Traffic(by_task, share * gathered, 2 * share * sums * _SUM)


def sent_bytes(dtype: torch.dtype) -> float:
    """Bytes of a number while it is sent."""
    return BYTES if dtype == CODE else dtype.itemsize


def all_reduce_bytes(numbers: int, world_size: int) -> float:
    """What one rank sends to all-reduce float32 numbers: the cost of one plain gradient."""
    return 2 * (world_size - 1) / world_size * numbers * _FLOAT
