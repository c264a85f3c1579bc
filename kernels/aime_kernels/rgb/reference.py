"""Gram matrix and linear combinations of long vectors, each in one pass over chunks."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from aime_kernels.rgb.layout import Vector, chunk_elements, chunks, device_of, flat_alike, gather

_BLOCK = 4096
"""Elements of one small product. The blocks of a chunk are a batch, over which the threads divide."""


def gram(columns: Sequence[Vector], m: int) -> Tensor:
    """`aime_kernels.rgb_gram` of m vectors with every product and sum in float64. columns: the positions not zero."""
    if not columns:
        return torch.zeros(m, m, dtype=torch.float64)
    if torch.compiler.is_compiling():
        return _products(columns, m)
    positions = [flat_alike(column) for column in columns]
    size = sum(next(flat.numel() for flat in flats if flat is not None) for flats in positions)
    device = device_of(positions[0])
    chunk = chunk_elements(device)
    blocks = -(-min(chunk, size) // _BLOCK)
    staging = torch.empty(m, blocks * _BLOCK, dtype=torch.float64, device=device)
    sums = torch.zeros(blocks, m, m, dtype=torch.float64, device=device)

    @cache
    def views(total: int) -> tuple[Sequence[Tensor], Tensor | None, Tensor, Tensor, Tensor]:
        """For a chunk: a line for each vector, the padding, [blocks, m, block], [blocks, block, m] and their sums."""
        block = min(total, _BLOCK)
        padded = -(-total // block) * block
        batch = staging[:, :padded].unflatten(1, (-1, block))
        padding = staging[:, total:padded] if padded > total else None
        lines = staging[:, :total].unbind()
        return lines, padding, batch.permute(1, 0, 2), batch.permute(1, 2, 0), sums[: batch.shape[1]]

    for lengths, pieces in chunks(positions, chunk):
        lines, padding, left, right, of_blocks = views(sum(lengths))
        for line, parts in zip(lines, pieces, strict=True):
            gather(parts, lengths, line)
        if padding is not None:
            padding.zero_()
        of_blocks.baddbmm_(left, right)
    total = sums.sum(0)
    return (total + total.t()) / 2


def combine(columns: Sequence[Vector], coefficients: Tensor, finite: Tensor) -> None:
    """`aime_kernels.rgb_combine`, one chunk at a time.

    columns: for each position with a direction the n gradients, the direction and the update.
    """
    if torch.compiler.is_compiling():
        return _in_one_loop(columns, coefficients, finite)
    positions = [flat_alike(column) for column in columns]
    direction = [column[-2] for column in columns if column[-2] is not None]
    first = direction[0]
    scalars = [list(line) for line in coefficients.to(first.dtype)]
    chunk = chunk_elements(first.device)
    size = sum(tensor.numel() for tensor in direction)
    scratch = first.new_empty(len(columns[0]) + 1, min(chunk, size))
    zero = first.new_zeros(())
    buffers: dict[int, Sequence[Tensor]] = {}
    for lengths, pieces in chunks(positions, chunk):
        length = sum(lengths)
        if length not in buffers:
            buffers[length] = scratch[:, :length].unbind()
        *gathered, new, total = buffers[length]
        # A piece that fills the chunk is read, and written, in place; shorter ones are gathered first.
        inputs = [
            parts[0] if len(parts) == 1 else gather(parts, lengths, buffer)
            for parts, buffer in zip(pieces[:-1], gathered, strict=True)
        ]
        old = inputs.pop()
        assert old is not None
        _combine(inputs, old, scalars, new, total)
        # A select, not a factor of zero: zero times NaN is NaN, and asking the host would stall the device.
        for result, instead, targets in ((total, zero, pieces[-1]), (new, old, pieces[-2])):
            only = targets[0]
            in_place = len(targets) == 1 and only is not None and only.dtype == result.dtype
            torch.where(finite, result, instead, out=only if in_place else result)
            if not in_place:
                torch._foreach_copy_([target for target in targets if target is not None], result.split(lengths))
    copy_back(columns, positions)


def _products(columns: Sequence[Vector], m: int) -> Tensor:
    """The same for a compiler, which fuses all these sums into one loop over the elements."""
    zero = torch.zeros((), dtype=torch.float64, device=device_of(columns[0]))
    gram = {}
    for i in range(m):
        for j in range(i + 1):
            pairs = [(column[i], column[j]) for column in columns]
            terms = [(a.double() * b.double()).sum() for a, b in pairs if a is not None and b is not None]
            gram[i, j] = gram[j, i] = sum(terms, zero)
    return torch.stack([gram[i, j] for i in range(m) for j in range(m)]).view(m, m)


def _in_one_loop(columns: Sequence[Vector], coefficients: Tensor, finite: Tensor) -> None:
    """The same for a compiler, which fuses it into one loop over the elements."""
    for *terms, old, target in columns:
        assert old is not None and target is not None
        new, total = torch.empty_like(old), torch.empty_like(old)
        _combine(terms, old, [list(line) for line in coefficients.to(old.dtype)], new, total)
        old.copy_(torch.where(finite, new, old))
        target.copy_(torch.where(finite, total, 0.0))


def _combine(inputs: Vector, old: Tensor, scalars: list[list[Tensor]], new: Tensor, total: Tensor) -> None:
    """Write both combinations of 1-d tensors into `new` and `total`; `scalars` are the coefficients as 0-d tensors."""
    of_update, of_direction = scalars
    terms = [(i, term) for i, term in enumerate(inputs) if term is not None]
    torch.mul(old, of_direction[-1], out=new)
    for i, term in terms:
        new.addcmul_(term, of_direction[i])
    torch.mul(new, of_update[-1], out=total)
    for i, term in terms:
        total.addcmul_(term, of_update[i])


def copy_back(columns: Sequence[Vector], positions: Sequence[Vector]) -> None:
    """Copy direction and update back where `flat_alike` returned copies because of mixed layouts."""
    for tensors, flats in zip(columns, positions, strict=True):
        for tensor, flat in zip(tensors[-2:], flats[-2:], strict=True):
            if tensor is not None and flat is not None and tensor.data_ptr() != flat.data_ptr():
                tensor.copy_(flat.view(tensor.shape))
