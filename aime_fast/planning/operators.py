"""What single operators cost: FLOPs, kernels on a GPU, and the sizes of products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

from torch.utils.flop_counter import flop_registry

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
    "aten.convolution_backward": 5,  # two layouts; the input's, the filter's and the bias's gradient
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": 3,
    "aten.nonzero": 3,
}
"""Kernels of operators that start several, by name without overload."""


class Shape(NamedTuple):
    """A product: `batch` products [rows, depth] x [depth, columns]."""

    batch: int
    rows: int
    columns: int
    depth: int


def runs(function: Any, name: str) -> bool:
    """Whether a call starts a kernel: views and allocations do not."""
    return not function.is_view and not name.startswith(_FREE)


def flops_of(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: object) -> float:
    """FLOPs of a call: torch's formulas, and ours for this project's operators; 0 for what only moves memory."""
    if formula := _OURS.get(_plain(str(function))):
        return formula(*args)
    known = flop_registry.get(function.overloadpacket)
    return float(known(*args, **kwargs, out_val=results)) if known else 0.0


def kernels_of(name: str, shape: Shape | None) -> int:
    """Kernels that a call starts on a GPU."""
    return _PARTS.get(_plain(name), 1)


def product_shape(function: Any, args: tuple[Any, ...]) -> Shape | None:
    """The sizes of a matrix product or of a convolution's product; None for other operators."""
    name = _plain(str(function))
    if name in ("aten.mm", "aten.addmm"):
        a, b = args[-2:] if name == "aten.mm" else args[1:3]
        return Shape(1, a.shape[0], b.shape[1], a.shape[1])
    if name in ("aten.bmm", "aten.baddbmm"):
        a, b = args[:2] if name == "aten.bmm" else args[1:3]
        return Shape(a.shape[0], a.shape[1], b.shape[2], a.shape[2])
    if name in ("aten.convolution", "aten.convolution_backward"):
        x, weight = args[:2] if name == "aten.convolution" else args[1:3]
        pixels = x.shape[0] * prod(x.shape[2:])
        return Shape(1, pixels, weight.shape[0], prod(weight.shape[1:]))
    return None


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


_OURS: dict[str, Callable[..., float]] = {
    "aime_kernels.nearest_codes": _codes,
    "aime_kernels.pixel_gradients": _pixels,
    "aime_kernels.logistic_mixture_gradients": _pixels,
    "aten.mkldnn_rnn_layer": _recurrent,
    "aten.mkldnn_rnn_layer_backward": lambda *args: 2 * _recurrent(*args),
}
"""Formulas of operators that torch's counter does not know."""
