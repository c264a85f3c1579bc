"""Long vectors as lists of tensors: gradients, updates and directions."""

from collections.abc import Iterable, Sequence

from torch import Tensor

Vector = list[Tensor | None]
"""One tensor a parameter (or a shard, or a flat buffer); None stands for zeros."""


def owned(gradients: Iterable[Tensor | None]) -> Vector:
    """Contiguous gradients that may be overwritten; copies only where that takes one.

    Autograd may return one tensor for two parameters (the gradient of a sum), a part of a larger one, or an expanded
    scalar.
    """
    seen: set[int] = set()
    vector: Vector = []
    for gradient in gradients:
        if gradient is not None:
            storage = gradient.untyped_storage()
            whole = storage.nbytes() == gradient.numel() * gradient.element_size()
            if storage.data_ptr() in seen or not whole or not gradient.is_contiguous():
                gradient = gradient.contiguous().clone()
            seen.add(storage.data_ptr())
        vector.append(gradient)
    return vector


def weighted_sum(vectors: Sequence[Vector], weights: Tensor, finite: Tensor) -> None:
    """Overwrite the first tensor at each position with sum_i weights[i] vectors[i], or with zeros if not finite.

    weights: float64 [n]. finite: 0-d bool. Both on the vectors' device.
    """
    for tensors in zip(*vectors, strict=True):
        present = [(weights[i].to(tensor.dtype), tensor) for i, tensor in enumerate(tensors) if tensor is not None]
        if not present:
            continue
        (weight, target), *others = present
        target.mul_(weight)
        for weight, tensor in others:
            target.addcmul_(tensor, weight)
        target.masked_fill_(~finite, 0.0)  # zero times NaN is NaN
