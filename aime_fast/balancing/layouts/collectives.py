"""How a flat tensor gets to the shards and back: float32 is reduced on the way, bfloat16 is added up on arrival.

The way back may have 8 bits (`rounded.py`).
"""

import torch
import torch.distributed as dist
from torch import Tensor

from aime_fast.balancing.layouts.rounded import CODE, packed, unpacked

# torch 2.13 gave them these names and warns of the older ones.
_reduce_scatter = dist.reduce_scatter_single if hasattr(dist, "reduce_scatter_single") else dist.reduce_scatter_tensor
_all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor


class Reduction:
    """The sum over ranks of a flat tensor, of which this rank gets its shard; begun when it is made.

    In bfloat16 half the bytes are sent. The ranks then exchange their parts and each adds up its own in float32, so a
    contribution is rounded once (by up to 2^-9 of itself) however many ranks there are, and a sum never.

    Args:
        flat: [N], float32 or of `dtype`, a multiple of the ranks; not to be changed before `shard` is called.
        world_size: ranks of the default process group. With one nothing is sent and nothing rounded.
        dtype: float32 or bfloat16.
    """

    def __init__(self, flat: Tensor, world_size: int, dtype: torch.dtype = torch.float32) -> None:
        self._work: dist.Work | None = None
        self._world_size = world_size
        if world_size == 1:
            self._sent = self._received = flat
        elif dtype == torch.float32:
            self._sent, self._received = flat, flat.new_empty(len(flat) // world_size)
            self._work = _reduce_scatter(self._received, flat, async_op=True)
        else:
            self._sent = flat.to(dtype)
            self._received = torch.empty_like(self._sent)
            self._work = dist.all_to_all_single(self._received, self._sent, async_op=True)

    def shard(self) -> Tensor:
        """This rank's part of the sum, float32 [N / W]; waits for it."""
        if self._work is not None:
            self._work.wait()
        if self._received.dtype == torch.float32:
            return self._received
        return added(self._received, self._world_size)


def added(received: Tensor, world_size: int) -> Tensor:
    """Float32 [N / W]: the sum of W parts, one after the other in `received` [N]."""
    return received.view(world_size, -1).sum(0, dtype=torch.float32)


def gathered(shards: list[Tensor], world_size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The flat float32 tensors that these are this rank's shards of, rounded to `dtype` while sent; collective.

    Every rank gets the same numbers, its own rounded too. dtype: float32, bfloat16, or `rounded.CODE` for 8 bits;
    shards are then multiples of a block.
    """
    sent = [narrowed(shard, dtype) for shard in shards]
    wholes = [shard.new_empty(len(shard) * world_size) for shard in sent]
    works = [_all_gather(whole, shard, async_op=True) for whole, shard in zip(wholes, sent, strict=True)]
    found = []
    for work, whole in zip(works, wholes, strict=True):
        work.wait()  # what follows runs while the next buffer is still sent
        found.append(widened(whole, world_size, dtype))
    return found


def narrowed(shard: Tensor, dtype: torch.dtype) -> Tensor:
    """What is sent of a float32 shard; see `gathered` for the dtypes."""
    return packed(shard) if dtype == CODE else shard.to(dtype)


def widened(received: Tensor, world_size: int, dtype: torch.dtype) -> Tensor:
    """The float32 numbers that arrived from W ranks, `narrowed` to `dtype`."""
    return unpacked(received, world_size) if dtype == CODE else received.to(torch.float32)
