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


def weighted_sum(vectors: Sequence[Vector], target: Vector, weights: Tensor, finite: Tensor) -> None:
    """Write sum_i weights[i] vectors[i] into `target`, whose tensors may be those of one vector; zeros if not finite.

    weights: float64 [n]. finite: 0-d bool. Both on the vectors' device. A position without a tensor stays as it is.
    """
    for *terms, place in zip(*vectors, target, strict=True):
        if place is None:
            continue
        scalars = weights.to(place.dtype).unbind()
        own = next(i for i, term in enumerate(terms) if term is not None and term.data_ptr() == place.data_ptr())
        place.mul_(scalars[own])
        for i, term in enumerate(terms):
            if term is not None and i != own:
                place.addcmul_(term, scalars[i])
        place.masked_fill_(~finite, 0.0)  # zero times NaN is NaN
