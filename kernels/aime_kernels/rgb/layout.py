"""Long vectors stored as lists of tensors, read in flat chunks of similar size without copying them as a whole."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

Vector = Sequence[Tensor | None]
"""A long vector in parts, or the parts of several vectors at one position; None for zeros."""
Chunk = tuple[list[int], list[list[Tensor | None]]]
"""The same range of several vectors: the lengths of its pieces, and for each vector its pieces, which are 1-d views."""


def device_of(tensors: Iterable[Tensor | None]) -> torch.device:
    """The device of the first tensor that is not None; the CPU where there is none."""
    return next((tensor.device for tensor in tensors if tensor is not None), torch.device("cpu"))


def flat_alike(tensors: Vector) -> list[Tensor | None]:
    """View tensors of one shape as 1-d tensors whose elements correspond; None stays None.

    Tensors that share one dense layout (contiguous, channels-last, transposed, ...) give views in memory order. Where
    the layouts differ, those that are not contiguous give contiguous copies. Raises ValueError when shapes differ.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if len({tensor.shape for tensor in present}) > 1:
        raise ValueError(f"tensors at one position differ in shape: {[tuple(tensor.shape) for tensor in present]}")
    # Strides of axes of size 1 (or of empty tensors) mean nothing, hence the test for contiguity first.
    if all(tensor.is_contiguous() for tensor in present):
        return [None if tensor is None else tensor.view(-1) for tensor in tensors]
    # Only a tensor whose elements fill one block of memory, each once, passes its strides on to a new tensor.
    first = present[0]
    if len({tensor.stride() for tensor in present} | {torch.empty_like(first, device="meta").stride()}) == 1:
        return [None if tensor is None else tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    return [None if tensor is None else tensor.contiguous().view(-1) for tensor in tensors]


def chunks(positions: Sequence[Vector], size: int) -> Iterator[Chunk]:
    """Cut long vectors into chunks of at most `size` elements: long tensors are split evenly, short ones gathered.

    positions: for each position the 1-d tensors of all vectors, of one length, at least one not None. The number of
    chunks depends on the number of elements, not on the number of tensors.
    """
    lengths: list[int] = []
    columns: list[Vector] = []
    for flats in positions:
        numel = next(flat.numel() for flat in flats if flat is not None)
        parts = -(-numel // size)
        cuts = [numel * (part + 1) // parts - numel * part // parts for part in range(parts)]
        pieces = ([None] * parts if flat is None else flat.split(cuts) for flat in flats)
        ranges = [flats] if parts == 1 else zip(*pieces, strict=True)
        for length, column in zip(cuts, ranges if parts else (), strict=True):
            if sum(lengths) + length > size:
                yield lengths, [list(parts) for parts in zip(*columns, strict=True)]
                lengths, columns = [], []
            lengths.append(length)
            columns.append(column)
    if lengths:
        yield lengths, [list(parts) for parts in zip(*columns, strict=True)]


def gather(pieces: Vector, lengths: Sequence[int], out: Tensor) -> Tensor:
    """Copy pieces one after the other into `out` [sum of lengths], zeros for None, in its dtype; returns it."""
    if len(pieces) == 1 and pieces[0] is not None:
        return out.copy_(pieces[0])
    if all(piece is None for piece in pieces):
        return out.zero_()
    dtype = next(piece.dtype for piece in pieces if piece is not None)
    zeros = out.new_zeros(max(lengths), dtype=dtype) if any(piece is None for piece in pieces) else out
    parts = [zeros[:length] if piece is None else piece for piece, length in zip(pieces, lengths, strict=True)]
    return torch.cat(parts, out=out)


def chunk_elements(device: torch.device) -> int:
    """Elements of a chunk: on a CPU a few chunks fit in the cache; elsewhere launches cost more, so many more."""
    return 1 << 19 if device.type == "cpu" else 1 << 21
