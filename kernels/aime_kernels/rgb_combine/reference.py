"""Two linear combinations of long vectors in one streaming pass, in place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aime_kernels.rgb_gram.layout import chunk_elements, first_present, flat_alike

_CHUNK = 1 << 16
"""Elements of a vector worked on at a time on a CPU: a few float32 vectors of 256 KiB stay in cache."""


@torch.no_grad()
def rgb_combine(
    rows: Sequence[Sequence[Tensor | None]],
    direction: Sequence[Tensor | None],
    update: Sequence[Tensor | None],
    coefficients: Tensor,
    finite: Tensor,
) -> None:
    """Write the next direction and the update, both combinations of n rows and a direction, in place.

        direction <- sum_i coefficients[1, i] rows[i] + coefficients[1, n] direction
        update    <- sum_i coefficients[0, i] rows[i] + coefficients[0, n] direction   (the new one)

    Every vector is a list of K tensors; `rows[i][k]` may be None for zeros; where `direction[k]` is None the position
    is left alone, and `update[k]` must be None there too. `update[k]` may be a row's own tensor: a chunk is read
    before it is written. No two other tensors may share memory. coefficients: [2, n+1], on the device of the data;
    the arithmetic is in the direction's dtype. finite: 0-d bool on the device; False writes a zero update and leaves
    the direction as it is, whatever the rows hold.

    Why an op: n+1 vectors are read and two written once; written as tensor algebra each axpy is a pass of its own.
    """
    n = len(rows)
    present = first_present(direction)
    if present is None:
        return
    scalars = [[row[i] for i in range(n + 1)] for row in coefficients.to(present.dtype)]
    chunk = chunk_elements(present.device, _CHUNK)
    scratch = present.new_empty(2, min(chunk, max(tensor.numel() for tensor in direction if tensor is not None)))
    zero = present.new_zeros(())
    for k, target in enumerate(direction):
        result = update[k]
        if target is None or result is None:
            continue
        inputs = [row[k] for row in rows]
        *flats, old, out = flat_alike([*inputs, target, result])
        assert old is not None and out is not None
        _combine_flat(flats, old, out, scalars, scratch, finite, zero)
        if old.data_ptr() != target.data_ptr():
            target.copy_(old.view(target.shape))
        if out.data_ptr() != result.data_ptr():
            result.copy_(out.view(result.shape))


def _combine_flat(
    flats: Sequence[Tensor | None],
    direction: Tensor,
    update: Tensor,
    scalars: list[list[Tensor]],
    scratch: Tensor,
    finite: Tensor,
    zero: Tensor,
) -> None:
    """`rgb_combine` on 1-d tensors of one length; `scratch` holds two chunks, `scalars` the coefficients as 0-d."""
    of_update, of_direction = scalars
    chunk = scratch.shape[1]
    for start in range(0, direction.numel(), chunk):
        stop = min(start + chunk, direction.numel())
        new, total = scratch[:, : stop - start]
        old, out = direction[start:stop], update[start:stop]
        terms = [(i, flat[start:stop]) for i, flat in enumerate(flats) if flat is not None]
        torch.mul(old, of_direction[-1], out=new)
        for i, term in terms:
            new.addcmul_(term, of_direction[i])
        torch.mul(new, of_update[-1], out=total)
        for i, term in terms:
            total.addcmul_(term, of_update[i])
        # A select, not a factor of zero: zero times NaN is NaN, and asking the host would stall the device.
        torch.where(finite, total, zero, out=total)
        out.copy_(total)
        torch.where(finite, new, old, out=old)
