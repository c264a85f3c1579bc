"""`rgb_combine`: the public function, and the operator behind its kernel."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aime_kernels.dispatch import Route, kernels_possible, route, size_class
from aime_kernels.rgb_combine import reference
from aime_kernels.rgb_gram.layout import flat_alike
from aime_kernels.rgb_gram.table import obstacle, works


@torch.no_grad()
def rgb_combine(
    rows: Sequence[Sequence[Tensor | None]],
    direction: Sequence[Tensor | None],
    update: Sequence[Tensor | None],
    coefficients: Tensor,
    finite: Tensor,
) -> None:
    """Write the next direction and the update, both combinations of n rows and a direction, in place.

        direction <- sum_i coefficients[1, i] rows[i] + coefficients[1, n] direction
        update    <- sum_i coefficients[0, i] rows[i] + coefficients[0, n] direction   (the new one)

    Every vector is a list of K tensors; `rows[i][k]` may be None for zeros; where `direction[k]` is None the position
    is left alone, and `update[k]` must be None there too. `update[k]` may be a row's own tensor: a chunk is read
    before it is written. No two other tensors may share memory. coefficients: [2, n+1], on the device of the data;
    the arithmetic is in the direction's dtype. finite: 0-d bool on the device; False writes a zero update and leaves
    the direction as it is, whatever the rows hold. Raises ValueError when tensors at one position differ in shape.

    Why an op: n+1 vectors are read and two written once; written as tensor algebra each axpy is a pass of its own.
    """
    device = next((tensor.device for tensor in direction if tensor is not None), torch.device("cpu"))
    if not kernels_possible(device):
        return reference.rgb_combine(rows, direction, update, coefficients, finite)
    kept = [column for column in zip(*rows, direction, update, strict=True) if column[-2] is not None]
    if not kept:
        return None
    *vectors, old, new = ([column[i] for column in kept] for i in range(len(rows) + 2))
    reason = obstacle(vectors, [old, new], device)
    if coefficients.device != device or finite.device != device:
        reason = f"coefficients or finite are not on {device}"
    size = sum(tensor.numel() for tensor in old if tensor is not None)
    classes = (len(rows), size_class(size), size_class(len(kept)))
    if route("rgb_combine", device, reason, classes, lambda: _trials(vectors, old, coefficients)) != "triton":
        return reference.rgb_combine(rows, direction, update, coefficients, finite)
    return _rgb_combine([tensor for row in vectors for tensor in row], old, new, coefficients, finite)


@torch.library.custom_op("aime_kernels::rgb_combine", mutates_args=("direction", "update"))
def _rgb_combine(
    rows: Sequence[Tensor | None],
    direction: Sequence[Tensor],
    update: Sequence[Tensor],
    coefficients: Tensor,
    finite: Tensor,
) -> None:
    """`rows`: n lists of the direction's length, one after the other."""
    from aime_kernels.rgb_combine.triton_kernel import rgb_combine_triton

    length = len(direction)
    columns = [[*rows[k::length], direction[k], update[k]] for k in range(length)]
    positions = [flat_alike(column) for column in columns]
    for work in works(positions, direction[0].device):
        rgb_combine_triton(work, coefficients, finite)
    reference.copy_back(columns, positions)


@_rgb_combine.register_fake
def _(
    rows: Sequence[Tensor | None],
    direction: Sequence[Tensor],
    update: Sequence[Tensor],
    coefficients: Tensor,
    finite: Tensor,
) -> None:
    return None


def _trials(
    vectors: Sequence[Sequence[Tensor | None]], direction: Sequence[Tensor | None], coefficients: Tensor
) -> Mapping[Route, Any]:
    """The caller's vectors with scratch in place of what would be written."""
    old = [torch.zeros_like(tensor) for tensor in direction if tensor is not None]
    new, finite = [torch.empty_like(tensor) for tensor in old], torch.tensor(True, device=coefficients.device)
    flat, scalars = [tensor for vector in vectors for tensor in vector], torch.zeros_like(coefficients)
    return {
        "reference": lambda: reference.rgb_combine(vectors, old, new, scalars, finite),
        "triton": lambda: _rgb_combine(flat, old, new, scalars, finite),
    }
