"""Gram matrix of long vectors in one streaming pass, in double precision."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aime_kernels.rgb_gram.layout import chunk_elements, first_present, flat_alike

_BLOCK = 4096
"""Elements of one small product; the blocks of a chunk are the batch over which the threads divide."""
_CHUNK = 32 * _BLOCK
"""Elements of a vector converted at a time on a CPU: four vectors in float64 are 4 MiB."""


@torch.no_grad()
def rgb_gram(vectors: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Inner products of m long vectors, each a list of K tensors: float64 [m, m], symmetric.

    `vectors[i][k]` is a floating-point tensor of any shape, the same shape for every i, or None for zeros. Each
    element is read from memory once. Products and sums are in float64: for float32 data no square overflows or
    vanishes, so the result is finite exactly when the data are. The order of summation is fixed by the shapes.
    Raises ValueError when the lists differ in length or the tensors at one position in shape.

    Why an op: m(m+1)/2 separate dot products read each vector m+1 times; this is bound by reading m vectors once.
    """
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError(f"vectors have different numbers of tensors: {[len(vector) for vector in vectors]}")
    m = len(vectors)
    present = first_present([tensor for vector in vectors for tensor in vector])
    device = torch.device("cpu") if present is None else present.device
    gram = torch.zeros(m, m, dtype=torch.float64, device=device)
    if present is None:
        return gram
    chunk = chunk_elements(device, _CHUNK)
    longest = max(tensor.numel() for vector in vectors for tensor in vector if tensor is not None)
    blocks = -(-min(chunk, longest) // _BLOCK)
    staging = torch.empty(m, blocks * _BLOCK, dtype=torch.float64, device=device)
    for tensors in zip(*vectors, strict=True):
        if first_present(tensors) is not None:
            _add_products(gram, flat_alike(tensors), staging, chunk)
    return (gram + gram.t()) / 2


def _add_products(gram: Tensor, flats: Sequence[Tensor | None], staging: Tensor, chunk: int) -> None:
    """Add the inner products of 1-d tensors (None: zeros) to `gram` [m, m]; `staging` [m, >= chunk] is scratch."""
    numel = next(flat.numel() for flat in flats if flat is not None)
    for start in range(0, numel, chunk):
        length = min(chunk, numel - start)
        # A tensor shorter than a block is one short block; otherwise zeros fill the last block up.
        block = min(length, _BLOCK)
        padded = -(-length // block) * block
        for row, flat in zip(staging, flats, strict=True):
            if flat is None:
                row[:padded].zero_()
            else:
                row[:length].copy_(flat[start : start + length])
                row[length:padded].zero_()
        blocks = staging[:, :padded].unflatten(1, (-1, block))
        gram += torch.bmm(blocks.permute(1, 0, 2), blocks.permute(1, 2, 0)).sum(0)
