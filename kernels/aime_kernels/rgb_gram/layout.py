"""Long vectors stored as lists of tensors, seen as flat chunks without moving them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """True when the tensor's elements fill one block of memory, each element once, in any order of its axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def flat_alike(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """View tensors of one shape as 1-d tensors whose elements correspond; None stays None.

    Tensors that share one dense layout (contiguous, channels-last, transposed, ...) come back as views in the order
    of memory. Where the layouts differ, those that are not contiguous come back as contiguous copies instead.
    Raises ValueError when the shapes differ.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    if len({tensor.shape for tensor in present}) > 1:
        raise ValueError(f"tensors at one position differ in shape: {[tuple(tensor.shape) for tensor in present]}")
    # Strides of axes of size 1 (or of empty tensors) mean nothing, hence the test for contiguity first.
    if all(tensor.is_contiguous() for tensor in present):
        return [None if tensor is None else tensor.view(-1) for tensor in tensors]
    if len({tensor.stride() for tensor in present}) == 1 and is_dense(present[0]):
        return [None if tensor is None else tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    return [None if tensor is None else tensor.contiguous().view(-1) for tensor in tensors]


def first_present(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The first tensor that is not None, or None."""
    return next((tensor for tensor in tensors if tensor is not None), None)


def chunk_elements(device: torch.device, cached: int) -> int:
    """Elements of a chunk: `cached` on a CPU, to stay in its cache; many more where launches cost more."""
    return cached if device.type == "cpu" else 1 << 22
