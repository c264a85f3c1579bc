"""What single operators cost: FLOPs, kernels on a GPU, and the sizes of products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, prod
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_FREE = (
    "prim.",
    "aten.empty",
    "aten.new_empty",
    "aten.detach",
    "aten.alias",
    "aten._unsafe_view",
    "aten.promote_types",
)
"""Operators that start no kernel although they are no views, by the beginning of their names."""

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
_DEEP = 512
"""Libraries cut a product of at least this depth along it, and add the parts up in a second kernel."""


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


def runs(function: Any, name: str) -> bool:
    """Whether a call starts a kernel: views and allocations do not."""
    return not function.is_view and not name.startswith(_FREE)


def flops_of(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: object) -> float:
    """FLOPs of a call: torch's formulas, and ours for this project's operators; 0 for what only moves memory."""
    if formula := _OURS.get(_plain(str(function))):
        return formula(*args)
    known = flop_registry.get(function.overloadpacket)
    return float(known(*args, **kwargs, out_val=results)) if known else 0.0


def kernels_of(name: str, shapes: Sequence[Shape], tensors: Sequence[Tensor]) -> int:
    """Kernels that a call starts on a GPU. `tensors`: those that it reads and writes."""
    plain = _plain(name)
    if plain.startswith(("aten._foreach_", "aten._fused_")):
        return max(1, ceil(len(tensors) / _LIST), ceil(sum(t.numel() for t in tensors) / _LIST_ENTRIES))
    return _PARTS.get(plain, 1) + sum(shape.depth >= _DEEP for shape in shapes)


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


def _codes(vectors: Any, codes: Any, *_: Any) -> float:
    return 2.0 * vectors.numel() * codes.shape[0]


_PIXEL = 120.0
"""FLOPs of one channel of one logistic component in `triton_kernel.py`, value and gradient, a logarithm as 8."""


def _pixels(x: Any, centre: Any, blocks: Any, *_: Any) -> float:
    frames, components, _, pixels = blocks.shape
    return _PIXEL * 3 * frames * components * pixels


def _recurrent(x: Any, w: Any, *_: Any) -> float:
    return 2.0 * x.shape[0] * x.shape[1] * w.shape[0] * (w.shape[1] + w.shape[0] // 4)


def _attention(q: Any, k: Any, v: Any, *_: Any) -> float:
    return float(sdpa_flop_count(q.shape, k.shape, v.shape))


def _attention_backward(pull: Any, q: Any, k: Any, v: Any, *_: Any) -> float:
    return float(sdpa_backward_flop_count(pull.shape, q.shape, k.shape, v.shape))


_OURS: dict[str, Callable[..., float]] = {
    "aime_kernels.nearest_codes": _codes,
    "aime_kernels.pixel_gradients": _pixels,
    "aime_kernels.logistic_mixture_gradients": _pixels,
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten.mkldnn_rnn_layer": _recurrent,
    "aten.mkldnn_rnn_layer_backward": lambda *args: 2 * _recurrent(*args),
}
"""Formulas of operators that torch's counter does not know."""
