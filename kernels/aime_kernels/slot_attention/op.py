"""One round of slot attention (Locatello et al. 2020, arXiv:2006.15055, algorithm 1 without the GRU)."""

import torch
from torch import Tensor

from aime_kernels.dispatch import call, float_obstacle, padded_size, rounds_products, shapes
from aime_kernels.torch_operator import differentiable_operator, empty_like

_MAX_SLOTS, _MAX_TILE = 8, 4096


def slot_attention(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Let S slots compete for P positions, then average the values of each slot's positions.

    slots: [N, S, d]; keys, values: [N, P, d], one floating dtype. Returns
    - updates [N, S, d] = maps @ values, a weighted mean of the values;
    - assignments [N, S, P], softmax over slots of q.k / sqrt(d): sums to 1 over S;
    - maps [N, S, P] = assignments normalised over positions: sums to 1 over P.

    The normalisation over positions is a softmax of the log-assignments. This is the same ratio without an epsilon:
    a slot that loses everywhere still gets a finite map.
    """
    return call("slot_attention", slots.device, reference, slot_attention_operator, _obstacle, slots, keys, values)


def reference(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`slot_attention` in tensor algebra."""
    logits = _product(slots * slots.shape[-1] ** -0.5, keys.transpose(1, 2))
    log_assignments = logits.log_softmax(dim=1)
    maps = log_assignments.softmax(dim=2)
    return _product(maps, values), log_assignments.exp(), maps


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, [N, i, j] and [N, j, k], with no factor rounded; nor is one in its gradient."""
    if rounds_products(left.device):
        return torch.bmm(left.double(), right.double()).to(left.dtype)
    return torch.bmm(left, right)


def _obstacle(slots: Tensor, keys: Tensor, values: Tensor) -> str | None:
    if (reason := float_obstacle(slots, keys, values)) is not None:
        return reason
    if slots.dim() != 3 or keys.dim() != 3 or keys.shape != values.shape or slots.shape[::2] != keys.shape[::2]:
        return f"shapes {shapes(slots, keys, values)} do not fit"
    _, count, dim = slots.shape
    positions = keys.shape[1]
    if not 1 <= count <= _MAX_SLOTS or not positions or not dim or padded_size(positions, dim) > _MAX_TILE:
        return (
            f"{count} slots, {positions} positions of {dim} numbers; built for 1 to {_MAX_SLOTS} slots and a "
            f"padded tile of 1 to {_MAX_TILE}"
        )
    return None


def _outputs(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    shape = (slots.shape[0], slots.shape[1], keys.shape[1])
    return slots.new_empty(slots.shape), slots.new_empty(shape), slots.new_empty(shape)


slot_attention_operator, slot_attention_backward = differentiable_operator(
    "slot_attention",
    "aime_kernels.slot_attention.triton_kernel",
    "slots keys values -> updates assignments maps",
    _outputs,
    "slots keys values assignments maps -> slots keys values",
    lambda *inputs: empty_like(*inputs[:3]),
)
