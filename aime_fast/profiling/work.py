"""The arithmetic of a step by phase: operations of products, and bytes that operators read and write."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from aime_fast.profiling.launches import FREE, Launches

aten = torch.ops.aten


@dataclass(frozen=True)
class Work:
    """What one phase of a step computes."""

    flops: float = 0.0
    """Multiplications and additions of matrix products, convolutions, attention and recurrent networks."""
    bytes: float = 0.0
    """Sizes of all that operators read and write; views are free, and caches are not taken into account."""
    launches: float = 0.0
    """Operators that a GPU would start; see `Launches`."""


class Arithmetic(Launches):
    """Counts, beside calls, operations and bytes of what runs inside, as it runs on this device."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        """Operations by phase."""
        self.bytes: Counter[str] = Counter()
        """Bytes by phase."""

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        name = str(function)
        if not (function.is_view or name.startswith((*FREE, "profiler."))):
            self.flops[self.phase] += operations(function, args, kwargs or {}, result)
            self.bytes[self.phase] += sum(map(_size, _tensors((args, kwargs, result))))
        return result


def operations(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: object) -> int:
    """Multiplications and additions of one operator; 0 unless it is one of products."""
    packet = function.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    count = _MORE.get(packet)
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


def _tensors(nest: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor))


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor; an expanded one has no more than its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
