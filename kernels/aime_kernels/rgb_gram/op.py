"""`rgb_gram`: the public function, and the operator around its kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aime_kernels.dispatch import call
from aime_kernels.rgb_gram import reference
from aime_kernels.rgb_gram.layout import Vector, device_of, flat_alike
from aime_kernels.rgb_gram.table import obstacle, works


@torch.no_grad()
def rgb_gram(vectors: Sequence[Vector]) -> Tensor:
    """Inner products of m long vectors, each a list of K tensors: float64 [m, m], symmetric.

    `vectors[i][k]` is a floating-point tensor of any shape and alignment, the same shape for every i, or None for
    zeros. Each element is read from memory once. For float32 data no square overflows or vanishes: the result is
    finite exactly when the data are. Shapes and alignment fix the order of summation. On a CPU products and sums are
    float64. The kernel (docs/kernels.md) sums 4 to 8 products in float32, within 5e-7 sum |x y|, and the rest in
    float64.

    Raises ValueError when the lists differ in length or the tensors at one position in shape.

    Why a kernel: m(m+1)/2 separate dot products read each vector m+1 times.
    """
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError(f"vectors have different numbers of tensors: {[len(vector) for vector in vectors]}")
    device = device_of(tensor for vector in vectors for tensor in vector)
    return call("rgb_gram", device, reference.rgb_gram, _by_kernel, _obstacle, vectors)


def _by_kernel(vectors: Sequence[Vector]) -> Tensor:
    return gram_operator([tensor for vector in vectors for tensor in vector], len(vectors))


def _obstacle(vectors: Sequence[Vector]) -> str | None:
    return obstacle(vectors[:-1], vectors[-1:], device_of(tensor for vector in vectors for tensor in vector))


@torch.library.custom_op("aime_kernels::rgb_gram", mutates_args=())
def gram_operator(vectors: Sequence[Tensor | None], count: int) -> Tensor:
    """`vectors`: the lists one after the other, K entries each, `count` of them."""
    from aime_kernels.rgb_gram.triton_kernel import rgb_gram_triton

    length, device = len(vectors) // count, device_of(vectors)
    columns = [vectors[k::length] for k in range(length)]
    positions = [flat_alike(column) for column in columns if any(tensor is not None for tensor in column)]
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    for work in works(positions, device):
        gram += rgb_gram_triton(work)
    return gram


@gram_operator.register_fake
def _(vectors: Sequence[Tensor | None], count: int) -> Tensor:
    return torch.empty(count, count, dtype=torch.float64, device=device_of(vectors))
