"""Long vectors as lists of tensors: gradients, updates and directions."""

from collections.abc import Iterable

import torch
from torch import Tensor

Vector = list[Tensor | None]
"""One tensor a parameter (or a shard, or a flat buffer); None stands for zeros."""


def owned(gradients: Iterable[Tensor | None], dtype: torch.dtype | None = None) -> Vector:
    """Contiguous gradients that may be overwritten, in `dtype` or their own: copies only where that takes one.

    Autograd may hand out one tensor for two parameters (a sum's gradient), a part of a larger one, or a scalar that is
    expanded.
    """
    seen: set[int] = set()
    row: Vector = []
    for gradient in gradients:
        if gradient is not None:
            storage, wanted = gradient.untyped_storage(), dtype or gradient.dtype
            shared = storage.data_ptr() in seen or storage.nbytes() != gradient.numel() * gradient.element_size()
            if shared or gradient.dtype != wanted or not gradient.is_contiguous():
                gradient = gradient.to(wanted, memory_format=torch.contiguous_format, copy=True)
            seen.add(storage.data_ptr())
        row.append(gradient)
    return row
