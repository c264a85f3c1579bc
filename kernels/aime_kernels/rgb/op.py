"""`rgb_gram` and `rgb_combine`: the public functions, and the operators around their kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aime_kernels.dispatch import call
from aime_kernels.rgb import reference
from aime_kernels.rgb.layout import Vector, device_of, flat_alike
from aime_kernels.rgb.table import obstacle, works


@torch.no_grad()
def rgb_gram(vectors: Sequence[Vector]) -> Tensor:
    """Inner products of m long vectors, each a list of K tensors: float64 [m, m], symmetric.

    `vectors[i][k]` is a floating-point tensor of any shape and alignment, the same shape for every i, or None for
    zeros. Each element is read once. For float32 data no square overflows or vanishes: the result is finite exactly
    when the data are. Shapes and alignment fix the order of summation. The reference computes in float64. The kernel
    sums 4 to 8 products in float32, within 5e-7 sum |x y|, and the rest in float64 (docs/kernels.md).
    Raises ValueError when the lists differ in length or the tensors at one position in shape.
    """
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError(f"vectors have different numbers of tensors: {[len(vector) for vector in vectors]}")
    columns = [column for column in zip(*vectors, strict=True) if any(tensor is not None for tensor in column)]
    device = device_of(tensor for column in columns for tensor in column)
    return call("rgb_gram", device, reference.gram, _gram_by_kernel, _gram_obstacle, columns, len(vectors))


@torch.no_grad()
def rgb_combine(
    gradients: Sequence[Vector], direction: Vector, update: Vector, coefficients: Tensor, finite: Tensor
) -> None:
    """Write the next direction and the update, both linear combinations of n gradients and a direction, in place.

        direction <- sum_i coefficients[1, i] gradients[i] + coefficients[1, n] direction
        update    <- sum_i coefficients[0, i] gradients[i] + coefficients[0, n] direction   (the new one)

    Every vector is a list of K tensors of any alignment. `gradients[i][k]` may be None for zeros. Where `direction[k]`
    is None nothing is written, and `update[k]` must be None too. `update[k]` may be a gradient's own tensor: a chunk is
    read before it is written. No two other tensors may share memory. coefficients: [2, n+1], on the device of the data;
    the arithmetic is in the direction's dtype. finite: 0-d bool on the device; False writes a zero update and leaves
    the direction unchanged, whatever the gradients are. Raises ValueError when tensors at one position differ in shape.
    """
    # A position without a direction takes no part.
    columns = [column for column in zip(*gradients, direction, update, strict=True) if column[-2] is not None]
    inputs, device = (columns, coefficients, finite), device_of(direction)
    if columns:
        call("rgb_combine", device, reference.combine, _combine_by_kernel, _combine_obstacle, *inputs)


def _gram_by_kernel(columns: Sequence[Vector], count: int) -> Tensor:
    return gram_operator([tensor for column in columns for tensor in column], count)


def _gram_obstacle(columns: Sequence[Vector], count: int) -> str | None:
    return obstacle(columns, count - 1, device_of(tensor for column in columns for tensor in column))


@torch.library.custom_op("aime_kernels::rgb_gram", mutates_args=())
def gram_operator(vectors: Sequence[Tensor | None], count: int) -> Tensor:
    """`vectors`: the tensors at one position of `count` vectors, then those at the next."""
    from aime_kernels.rgb.triton_gram import rgb_gram_triton

    device = device_of(vectors)
    positions = [flat_alike(vectors[k : k + count]) for k in range(0, len(vectors), count)]
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    for work in works(positions, device):
        gram += rgb_gram_triton(work)
    return gram


@gram_operator.register_fake
def _(vectors: Sequence[Tensor | None], count: int) -> Tensor:
    return torch.empty(count, count, dtype=torch.float64, device=device_of(vectors))


def _combine_by_kernel(columns: Sequence[Vector], coefficients: Tensor, finite: Tensor) -> None:
    *_, old, new = zip(*columns, strict=True)
    combine_operator([tensor for column in columns for tensor in column[:-2]], old, new, coefficients, finite)


def _combine_obstacle(columns: Sequence[Vector], coefficients: Tensor, finite: Tensor) -> str | None:
    device = device_of(columns[0][-2:])
    if coefficients.device != device or finite.device != device:
        return f"coefficients or finite are not on {device}"
    return obstacle(columns, len(columns[0]) - 2, device)


@torch.library.custom_op("aime_kernels::rgb_combine", mutates_args=("direction", "update"))
def combine_operator(
    gradients: Sequence[Tensor | None],
    direction: Sequence[Tensor],
    update: Sequence[Tensor],
    coefficients: Tensor,
    finite: Tensor,
) -> None:
    """`gradients`: the n tensors at the first position, then those at the next."""
    from aime_kernels.rgb.triton_combine import rgb_combine_triton

    n = len(gradients) // len(direction)
    columns = [[*gradients[n * k : n * (k + 1)], *pair] for k, pair in enumerate(zip(direction, update, strict=True))]
    positions = [flat_alike(column) for column in columns]
    for work in works(positions, direction[0].device):
        rgb_combine_triton(work, coefficients, finite)
    reference.copy_back(columns, positions)


@combine_operator.register_fake
def _(*_: object) -> None:
    return None
