"""`rgb_combine`: the public function, and the operator around its kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aime_kernels.dispatch import call
from aime_kernels.rgb_combine import reference
from aime_kernels.rgb_gram.layout import Vector, device_of, flat_alike
from aime_kernels.rgb_gram.table import obstacle, works


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

    Why a kernel: it reads n+1 vectors once and writes two. In tensor algebra every term is a pass of its own.
    """
    # A position without a direction takes no part.
    columns = [column for column in zip(*gradients, direction, update, strict=True) if column[-2] is not None]
    if columns:
        device = device_of(direction)
        call("rgb_combine", device, reference.rgb_combine, _by_kernel, _obstacle, columns, coefficients, finite)


def _by_kernel(columns: Sequence[Vector], coefficients: Tensor, finite: Tensor) -> None:
    *gradients, old, new = zip(*columns, strict=True)
    combine_operator([tensor for gradient in gradients for tensor in gradient], old, new, coefficients, finite)


def _obstacle(columns: Sequence[Vector], coefficients: Tensor, finite: Tensor) -> str | None:
    *gradients, old, new = zip(*columns, strict=True)
    device = device_of(old)
    if coefficients.device != device or finite.device != device:
        return f"coefficients or finite are not on {device}"
    return obstacle(gradients, [old, new], device)


@torch.library.custom_op("aime_kernels::rgb_combine", mutates_args=("direction", "update"))
def combine_operator(
    gradients: Sequence[Tensor | None],
    direction: Sequence[Tensor],
    update: Sequence[Tensor],
    coefficients: Tensor,
    finite: Tensor,
) -> None:
    """`gradients`: n lists of the direction's length, one after the other."""
    from aime_kernels.rgb_combine.triton_kernel import rgb_combine_triton

    length = len(direction)
    columns = [[*gradients[k::length], direction[k], update[k]] for k in range(length)]
    positions = [flat_alike(column) for column in columns]
    for work in works(positions, direction[0].device):
        rgb_combine_triton(work, coefficients, finite)
    reference.copy_back(columns, positions)


@combine_operator.register_fake
def _(*_: object) -> None:
    return None
