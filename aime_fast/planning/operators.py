"""What single operators cost on a GPU: kernels, and the sizes of products. profiling/flops.py has their FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any, NamedTuple

from torch import Tensor

from aime_fast.profiling.launches import FREE

_PARTS = {
    "aten.native_layer_norm_backward": 2,  # the input's gradient; sums over rows for scale and bias
    "aten.convolution": 2,  # the filter in the activations' layout; the product
    "aten.convolution_backward": 5,  # two layouts; the gradients of input, filter and bias
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": 3,
    "aten.nonzero": 3,
}
"""Kernels of operators that start several, by name without overload."""


_LIST, _LIST_ENTRIES = 96, 320 * 65536
"""Tensors and entries of a list that one kernel of torch takes."""
_DEEP, _ROOM = 128, 128
"""Libraries cut a product of at least this depth along it where its tiles would leave multiprocessors idle (a card has
82 to 142), and add the parts up in a second kernel."""


class Shape(NamedTuple):
    """A product: `batch` products [rows, depth] x [depth, columns]."""

    batch: int
    rows: int
    columns: int
    depth: int

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.batch * self.rows * self.columns * self.depth

    def tiles(self, rows: int, columns: int) -> int:
        """Tiles of that size in its result."""
        return self.batch * ceil(self.rows / rows) * ceil(self.columns / columns)

    @property
    def cut(self) -> bool:
        """Whether a second kernel adds parts of it up."""
        return self.depth >= _DEEP and self.tiles(128, 64) <= _ROOM


def runs(function: Any, name: str) -> bool:
    """Whether a call starts a kernel: views and allocations do not."""
    return not function.is_view and not name.startswith(("prim.", *FREE))


def kernels_of(name: str, shapes: Sequence[Shape], tensors: Sequence[Tensor]) -> int:
    """Kernels that a call starts on a GPU. `tensors`: those that it reads and writes."""
    plain = _plain(name)
    if plain.startswith(("aten._foreach_", "aten._fused_")):
        return max(1, ceil(len(tensors) / _LIST), ceil(sum(t.numel() for t in tensors) / _LIST_ENTRIES))
    return _PARTS.get(plain, 1) + sum(shape.cut for shape in shapes)


def product_shapes(function: Any, args: tuple[Any, ...]) -> tuple[Shape, ...]:
    """The products of a call: one for a matrix product, one for each gradient of a convolution; none for others."""
    name = _plain(str(function))
    if name in ("aten.mm", "aten.addmm"):
        a, b = args[:2] if name == "aten.mm" else args[1:3]
        return (Shape(1, a.shape[0], b.shape[1], a.shape[1]),)
    if name in ("aten.bmm", "aten.baddbmm"):
        a, b = args[:2] if name == "aten.bmm" else args[1:3]
        return (Shape(a.shape[0], a.shape[1], b.shape[2], a.shape[2]),)
    if name == "aten.convolution":
        return (_filtered(args[0], args[1], args[3], args[6]),)
    if name == "aten.convolution_backward":
        shape = _filtered(args[1], args[2], args[4], args[7])
        batch, rows, columns, depth = shape
        pulls = (Shape(batch, rows, depth, columns), Shape(batch, columns, depth, rows))
        return tuple(pull for pull, wanted in zip(pulls, args[-1], strict=False) if wanted)
    return ()


def _filtered(x: Tensor, weight: Tensor, strides: Sequence[int], transposed: bool) -> Shape:
    """The product of a convolution: pixels of its result by filters, as deep as a filter."""
    pixels = x.shape[0] * prod(x.shape[2:])
    if transposed:
        return Shape(1, pixels, prod(weight.shape[1:]), weight.shape[0])
    return Shape(1, pixels // prod(strides), weight.shape[0], prod(weight.shape[1:]))


def _plain(name: str) -> str:
    """An operator's name without its overload."""
    return name.rpartition(".")[0] if name.count(".") > 1 else name
