"""Operations of single operators: torch's formulas, and ours for what its counter does not know."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def operations(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: object) -> int:
    """Multiplications and additions of one operator; 0 unless it is one of products or of this project."""
    packet = function.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    count = _MORE.get(packet) or _OURS.get(str(packet))
    return count(*args) if count else 0


def _recurrent(inputs: Tensor, weights: Sequence[Tensor], passes: int) -> int:
    positions = inputs.numel() // inputs.shape[-1]
    return passes * 2 * positions * sum(weight.numel() for weight in weights if weight.ndim == 2)


_MORE: dict[Any, Callable[..., int]] = {
    aten.baddbmm_: lambda total, one, other, *_: 2 * one.numel() * other.shape[-1],
    aten.addmm_: lambda total, one, other, *_: 2 * one.numel() * other.shape[-1],
    aten.mv: lambda matrix, vector: 2 * matrix.numel(),
    aten.dot: lambda one, other: 2 * one.numel(),
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_: sdpa_flop_count(q.shape, k.shape, v.shape),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_: sdpa_backward_flop_count(
        grad.shape, q.shape, k.shape, v.shape
    ),
    aten.mkldnn_rnn_layer: lambda inputs, *weights: _recurrent(inputs, weights[:2], 1),
    aten.mkldnn_rnn_layer_backward: lambda inputs, *weights: _recurrent(inputs, weights[:2], 2),
    aten._cudnn_rnn: lambda inputs, weights, *_: _recurrent(inputs, weights, 1),
    aten._cudnn_rnn_backward: lambda inputs, weights, *_: _recurrent(inputs, weights, 2),
}
"""Operators of products that torch's own counter does not know."""

_PIXEL = 120
"""Operations of a channel of a logistic component in `triton_kernel.py`, value and gradient, a logarithm as 8."""


def _pixels(x: Tensor, centre: Tensor, blocks: Tensor, *more: Any) -> int:
    frames, components, _, pixels = blocks.shape
    return _PIXEL * 3 * frames * components * pixels


_OURS: dict[str, Callable[..., int]] = {
    "aime_kernels.nearest_codes": lambda vectors, codes, *_: 2 * vectors.numel() * codes.shape[0],
    "aime_kernels.pixel_gradients": _pixels,
    "aime_kernels.logistic_mixture_gradients": _pixels,
}
"""This project's operators, by name: they are registered where they are used."""
