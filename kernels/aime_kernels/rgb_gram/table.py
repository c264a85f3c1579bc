"""Lists of tensors as a kernel sees them: a table of addresses and a list of tiles, so nothing is concatenated."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from aime_kernels.rgb_gram.layout import Flats

MOST_VECTORS = 8
"""Vectors that the kernels are built for: a thread holds a piece of each in registers."""
TILE_BYTES = 1 << 16
"""What one program reads of the narrowest vector at most."""
_WIDE_BYTES = 16
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Work(NamedTuple):
    """One launch: tiles of the positions that share their dtypes and their alignment."""

    addresses: Tensor
    """int64 [K, V]: where the tensor of vector v at position k begins; 0 for zeros."""
    tiles: Tensor
    """int64 [T, 3]: position, first element, number of elements of each tile."""
    dtypes: tuple[torch.dtype, ...]
    """Of each vector; that of the others where a vector is zero everywhere."""
    aligned: bool
    """Every address is a multiple of 16 bytes."""


def works(positions: Sequence[Flats], device: torch.device) -> Iterator[Work]:
    """Cut positions (1-d tensors or None, one list of V a position) into launches of tiles."""
    groups: dict[tuple[tuple[torch.dtype, ...], bool], list[Flats]] = {}
    for flats in positions:
        known = next(flat for flat in flats if flat is not None)
        if known.numel():
            dtypes = tuple(known.dtype if flat is None else flat.dtype for flat in flats)
            aligned = all(flat is None or flat.data_ptr() % _WIDE_BYTES == 0 for flat in flats)
            groups.setdefault((dtypes, aligned), []).append(flats)
    for (dtypes, aligned), members in groups.items():
        sizes = tuple(next(flat.numel() for flat in flats if flat is not None) for flats in members)
        addresses = tuple(0 if flat is None else flat.data_ptr() for flats in members for flat in flats)
        tiles = _tiles(sizes, TILE_BYTES // narrowest(dtypes), device)
        yield Work(_table(addresses, len(dtypes), device), tiles, dtypes, aligned)


def narrowest(dtypes: Sequence[torch.dtype]) -> int:
    """Bytes of an element of the narrowest vector."""
    return min(dtype.itemsize for dtype in dtypes)


def obstacle(rows: Sequence[Flats], others: Sequence[Flats], device: torch.device) -> str | None:
    """Why the kernels cannot take these vectors; None if they can. At one position the rows must share a dtype."""
    if len(rows) + len(others) > MOST_VECTORS:
        return f"{len(rows) + len(others)} vectors, built for {MOST_VECTORS}"
    for tensors in zip(*rows, strict=True):
        if len({tensor.dtype for tensor in tensors if tensor is not None}) > 1:
            return "the rows differ in dtype at one position"
    present = [tensor for vector in (*rows, *others) for tensor in vector if tensor is not None]
    wrong = next((t for t in present if t.device != device or t.dtype not in _FLOATS), None)
    if wrong is not None:
        return f"a tensor of {wrong.dtype} on {wrong.device} among those on {device}"
    return None


@lru_cache(maxsize=16)
def _table(addresses: tuple[int, ...], vectors: int, device: torch.device) -> Tensor:
    """The allocator hands out the same addresses step after step, so that a step copies no table to the device."""
    return torch.tensor(addresses, dtype=torch.int64).view(-1, vectors).to(device)


@lru_cache(maxsize=16)
def _tiles(sizes: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    rows = [
        (position, start, min(block, size - start))
        for position, size in enumerate(sizes)
        for start in range(0, size, block)
    ]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 3).to(device)
