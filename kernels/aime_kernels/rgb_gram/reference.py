"""Gram matrix of long vectors in one pass over chunks, in double precision."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aime_kernels.rgb_gram.layout import Vector, chunk_elements, chunks, device_of, flat_alike, gather

_BLOCK = 4096
"""Elements of one small product. The blocks of a chunk are a batch, over which the threads divide."""


def rgb_gram(vectors: Sequence[Vector]) -> Tensor:
    """`aime_kernels.rgb_gram` with every product and sum in float64."""
    m = len(vectors)
    columns = [column for column in zip(*vectors, strict=True) if any(tensor is not None for tensor in column)]
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
    views: dict[int, _Views] = {}
    for lengths, pieces in chunks(positions, chunk):
        total = sum(lengths)
        if total not in views:
            views[total] = _views(staging, sums, total)
        lines, padding, left, right, of_blocks = views[total]
        for line, parts in zip(lines, pieces, strict=True):
            gather(parts, lengths, line)
        if padding is not None:
            padding.zero_()
        of_blocks.baddbmm_(left, right)
    gram = sums.sum(0)
    return (gram + gram.t()) / 2


class _Views(NamedTuple):
    """Views of `staging` [m, size] and `sums` for a chunk."""

    lines: Sequence[Tensor]
    """The chunk of each vector."""
    padding: Tensor | None
    """What follows them in the last block."""
    left: Tensor
    """[blocks, m, block]."""
    right: Tensor
    """[blocks, block, m]."""
    sums: Tensor
    """[blocks, m, m]."""


def _views(staging: Tensor, sums: Tensor, total: int) -> _Views:
    """For a chunk of `total` elements; less than a block is one short block."""
    block = min(total, _BLOCK)
    padded = -(-total // block) * block
    batch = staging[:, :padded].unflatten(1, (-1, block))
    padding = staging[:, total:padded] if padded > total else None
    lines = staging[:, :total].unbind()
    return _Views(lines, padding, batch.permute(1, 0, 2), batch.permute(1, 2, 0), sums[: batch.shape[1]])


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
