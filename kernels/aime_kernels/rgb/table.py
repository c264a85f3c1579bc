"""Lists of tensors as a kernel reads them: a table of addresses and a list of tiles. Nothing is concatenated."""

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
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
        present = [flat for flat in flats if flat is not None]
        size, dtypes = present[0].numel(), tuple((present[0] if flat is None else flat).dtype for flat in flats)
        # Elements before the first one that is aligned in all tensors; all of them where there is none.
        heads = range(min(_WIDE_BYTES // narrowest(dtypes), size))
        fits = (head for head in heads if all((t.data_ptr() + head * t.itemsize) % _WIDE_BYTES == 0 for t in present))
        head = next(fits, size)
        for start, end, aligned in ((0, head, False), (head, size, True)):
            if start < end:
                begins = (0 if flat is None else flat.data_ptr() + start * flat.itemsize for flat in flats)
                groups.setdefault((dtypes, aligned), []).append((tuple(begins), end - start))
    for (dtypes, aligned), ranges in groups.items():
        addresses, sizes = zip(*ranges, strict=True)
        yield Work(_table(addresses, device), _tiles(sizes, TILE_BYTES // narrowest(dtypes), device), dtypes, aligned)


def narrowest(dtypes: Sequence[torch.dtype]) -> int:
    """Bytes of an element of the narrowest dtype."""
    return min(dtype.itemsize for dtype in dtypes)


def obstacle(columns: Sequence[Vector], gradients: int, device: torch.device) -> str | None:
    """The reason why the kernels cannot take these positions, or None. The first tensors of each share a dtype."""
    for column in columns:
        if len(column) > _MAX_VECTORS:
            return f"{len(column)} vectors, built for {_MAX_VECTORS}"
        if len({tensor.dtype for tensor in column[:gradients] if tensor is not None}) > 1:
            return "the gradients differ in dtype at one position"
        for tensor in column:
            if tensor is not None and (tensor.device != device or tensor.dtype not in _FLOATS):
                return f"a tensor of {tensor.dtype} on {tensor.device} among those on {device}"
    return None


def _table(addresses: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return written_table(addresses, device)
    return _copied_table(addresses, device)


def written_table(addresses: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """The addresses as int64 on the device, as arguments of kernels.

    A CUDA graph cannot copy from the host, and the memory of its tensors has addresses that no earlier step had.
    """
    table = torch.zeros(len(addresses), len(addresses[0]), dtype=torch.int64, device=device)
    torch._foreach_add_(list(table.view(-1).unbind()), [address for row in addresses for address in row])
    return table


# The allocator returns the same addresses in every step: a step copies no table to the device, if the tables of all its
# calls (one call per group of parameters) fit in the cache.
@lru_cache(maxsize=256)
def _copied_table(addresses: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(addresses, dtype=torch.int64).to(device)


# Never dropped: a CUDA graph may read them. There are as many as groups of parameters.
@cache
def _tiles(sizes: tuple[int, ...], block: int, device: torch.device) -> Tensor:
    tiles = [
        (position, start, min(block, size - start))
        for position, size in enumerate(sizes)
        for start in range(0, size, block)
    ]
    return torch.tensor(tiles, dtype=torch.int64).to(device)
