"""Lists of tensors as a kernel reads them: a table of addresses and a list of tiles. Nothing is concatenated."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from aime_kernels.rgb.layout import Vector

_MAX_VECTORS = 8
"""The kernels are built for so many: a thread holds a piece of each in registers."""
TILE_BYTES = 1 << 16
"""The most that one program reads of the vector with the narrowest dtype."""
_WIDE_BYTES = 16
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Work(NamedTuple):
    """One launch: tiles of ranges that share their dtypes and their alignment."""

    addresses: Tensor
    """int64 [K, V]: where range k of vector v begins; 0 for zeros."""
    tiles: Tensor
    """int64 [T, 3]: range, first element, number of elements of each tile."""
    dtypes: tuple[torch.dtype, ...]
    """Of each vector; for a vector that is zero everywhere, the dtype of the others."""
    aligned: bool
    """Every address is a multiple of 16 bytes."""


def works(positions: Sequence[Vector], device: torch.device) -> Iterator[Work]:
    """Cut positions (for each the 1-d tensors or None of V vectors) into launches of tiles.

    Views into flat buffers begin at any address. Where all of a position's addresses reach a multiple of 16 after the
    same number of elements, only the elements before it are read narrowly.
    """
    groups: dict[tuple[tuple[torch.dtype, ...], bool], list[tuple[tuple[int, ...], int]]] = {}
    for flats in positions:
        known = next(flat for flat in flats if flat is not None)
        size, dtypes = known.numel(), tuple(known.dtype if flat is None else flat.dtype for flat in flats)
        head = min(_misaligned(flats, narrowest(dtypes), size), size)
        for start, end, aligned in ((0, head, False), (head, size, True)):
            if start < end:
                begins = (0 if flat is None else flat.data_ptr() + start * flat.itemsize for flat in flats)
                groups.setdefault((dtypes, aligned), []).append((tuple(begins), end - start))
    for (dtypes, aligned), ranges in groups.items():
        addresses, sizes = zip(*ranges, strict=True)
        yield Work(_table(addresses, device), _tiles(sizes, TILE_BYTES // narrowest(dtypes), device), dtypes, aligned)


def _misaligned(flats: Vector, width: int, size: int) -> int:
    """Elements before the first one that is aligned in all tensors; `size` where there is none."""
    present = [flat for flat in flats if flat is not None]
    heads = range(_WIDE_BYTES // width)
    fits = (head for head in heads if all((t.data_ptr() + head * t.itemsize) % _WIDE_BYTES == 0 for t in present))
    return next(fits, size)


def narrowest(dtypes: Sequence[torch.dtype]) -> int:
    """Bytes of an element of the narrowest dtype."""
    return min(dtype.itemsize for dtype in dtypes)


def obstacle(gradients: Sequence[Vector], others: Sequence[Vector], device: torch.device) -> str | None:
    """The reason why the kernels cannot take these vectors, or None. At one position the gradients share a dtype."""
    if len(gradients) + len(others) > _MAX_VECTORS:
        return f"{len(gradients) + len(others)} vectors, built for {_MAX_VECTORS}"
    for tensors in zip(*gradients, strict=True):
        if len({tensor.dtype for tensor in tensors if tensor is not None}) > 1:
            return "the gradients differ in dtype at one position"
    present = [tensor for vector in (*gradients, *others) for tensor in vector if tensor is not None]
    wrong = next((t for t in present if t.device != device or t.dtype not in _FLOATS), None)
    if wrong is not None:
        return f"a tensor of {wrong.dtype} on {wrong.device} among those on {device}"
    return None


# The allocator returns the same addresses in every step: a step copies no table to the device, if the tables of all its
# calls (one call per group of parameters) fit in the cache.
@lru_cache(maxsize=256)
def _table(addresses: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(addresses, dtype=torch.int64).to(device)


@lru_cache(maxsize=256)
def _tiles(sizes: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    tiles = [
        (position, start, min(block, size - start))
        for position, size in enumerate(sizes)
        for start in range(0, size, block)
    ]
    return torch.tensor(tiles, dtype=torch.int64).to(device)
