"""Gram matrix of long vectors in one streaming pass, in double precision."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aime_kernels.rgb_gram.layout import chunk_elements, chunks, flat_alike, gather

_BLOCK = 4096
"""Elements of one small product; the blocks of a chunk are the batch over which the threads divide."""


def rgb_gram(vectors: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """`aime_kernels.rgb_gram` with every product and sum in float64."""
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError(f"vectors have different numbers of tensors: {[len(vector) for vector in vectors]}")
    m = len(vectors)
    columns = [column for column in zip(*vectors, strict=True) if any(tensor is not None for tensor in column)]
    if not columns:
        return torch.zeros(m, m, dtype=torch.float64)
    if torch.compiler.is_compiling():
        return _products(columns, m)
    positions = [flat_alike(column) for column in columns]
    sizes = [next(flat.numel() for flat in flats if flat is not None) for flats in positions]
    device = next(flat.device for flat in positions[0] if flat is not None)
    chunk = chunk_elements(device)
    blocks = -(-min(chunk, sum(sizes)) // _BLOCK)
    staging = torch.empty(m, blocks * _BLOCK, dtype=torch.float64, device=device)
    sums = torch.zeros(blocks, m, m, dtype=torch.float64, device=device)
    views: dict[int, _Views] = {}
    for lengths, pieces in chunks(positions, chunk):
        total = sum(lengths)
        if total not in views:
            views[total] = _views(staging, sums, total)
        rows, rest, left, right, of_blocks = views[total]
        for row, parts in zip(rows, pieces, strict=True):
            gather(parts, lengths, row)
        if rest is not None:
            rest.zero_()
        of_blocks.baddbmm_(left, right)
    gram = sums.sum(0)
    return (gram + gram.t()) / 2


class _Views(NamedTuple):
    """Of `staging` [m, size]: a row a vector of a chunk, what is left of the last block, all blocks both ways; sums."""

    rows: Sequence[Tensor]
    rest: Tensor | None
    left: Tensor
    right: Tensor
    sums: Tensor


def _views(staging: Tensor, sums: Tensor, total: int) -> _Views:
    """For a chunk of `total` elements; less than a block is one short block."""
    block = min(total, _BLOCK)
    padded = -(-total // block) * block
    batch = staging[:, :padded].unflatten(1, (-1, block))
    rest = staging[:, total:padded] if padded > total else None
    rows = staging[:, :total].unbind()
    return _Views(rows, rest, batch.permute(1, 0, 2), batch.permute(1, 2, 0), sums[: batch.shape[1]])


def _products(columns: Sequence[Sequence[Tensor | None]], m: int) -> Tensor:
    """The same for a compiler, which makes one loop over the elements of all these sums."""
    device = next(tensor.device for tensor in columns[0] if tensor is not None)
    zero = torch.zeros((), dtype=torch.float64, device=device)
    gram = {}
    for i in range(m):
        for j in range(i + 1):
            pairs = [(column[i], column[j]) for column in columns]
            terms = [(a.double() * b.double()).sum() for a, b in pairs if a is not None and b is not None]
            gram[i, j] = gram[j, i] = sum(terms, zero)
    return torch.stack([gram[i, j] for i in range(m) for j in range(m)]).view(m, m)
