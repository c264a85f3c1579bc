"""`rgb_gram`: the public function, and the operator behind its kernel."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aime_kernels.dispatch import Route, kernels_possible, route, size_class
from aime_kernels.rgb_gram import reference
from aime_kernels.rgb_gram.layout import flat_alike
from aime_kernels.rgb_gram.table import obstacle, works


@torch.no_grad()
def rgb_gram(vectors: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Inner products of m long vectors, each a list of K tensors: float64 [m, m], symmetric.

    `vectors[i][k]` is a floating-point tensor of any shape, the same shape for every i, or None for zeros. Each
    element is read from memory once. For float32 data no square overflows or vanishes, so the result is finite exactly
    when the data are. The order of summation is fixed by the shapes. On a CPU products and sums are in float64; the
    kernel (docs/kernels.md) sums 4 to 8 products in float32, within 5e-7 sum |x y|, and everything beyond in float64.
    Raises ValueError when the lists differ in length or the tensors at one position in shape.

    Why an op: m(m+1)/2 separate dot products read each vector m+1 times; this is bound by reading m vectors once.
    """
    device = next((t.device for vector in vectors for t in vector if t is not None), torch.device("cpu"))
    if not kernels_possible(device) or len({len(vector) for vector in vectors}) > 1:
        return reference.rgb_gram(vectors)
    reason = obstacle(vectors[:-1], vectors[-1:], device)
    size = sum(t.numel() for t in vectors[-1] if t is not None)
    classes = (len(vectors), size_class(size), size_class(len(vectors[0])))
    if route("rgb_gram", device, reason, classes, lambda: _trials(vectors)) != "triton":
        return reference.rgb_gram(vectors)
    return _rgb_gram([tensor for vector in vectors for tensor in vector], len(vectors))


@torch.library.custom_op("aime_kernels::rgb_gram", mutates_args=())
def _rgb_gram(vectors: Sequence[Tensor | None], count: int) -> Tensor:
    """`vectors`: the lists one after the other, K entries each, `count` of them."""
    from aime_kernels.rgb_gram.triton_kernel import rgb_gram_triton

    length = len(vectors) // count
    columns = [[vectors[i * length + k] for i in range(count)] for k in range(length)]
    positions = [flat_alike(column) for column in columns if any(tensor is not None for tensor in column)]
    device = next((tensor.device for tensor in vectors if tensor is not None), torch.device("cpu"))
    gram = torch.zeros(count, count, dtype=torch.float64, device=device)
    for work in works(positions, device):
        gram += rgb_gram_triton(work)
    return gram


@_rgb_gram.register_fake
def _(vectors: Sequence[Tensor | None], count: int) -> Tensor:
    device = next((tensor.device for tensor in vectors if tensor is not None), torch.device("cpu"))
    return torch.empty(count, count, dtype=torch.float64, device=device)


def _trials(vectors: Sequence[Sequence[Tensor | None]]) -> Mapping[Route, Any]:
    flat = [tensor for vector in vectors for tensor in vector]
    return {
        "reference": lambda: reference.rgb_gram(vectors),
        "triton": lambda: _rgb_gram(flat, len(vectors)),
    }
