"""`slot_attention`: the public function, and the operators behind its kernels."""

from typing import Any

import torch
from torch import Tensor

from aime_kernels.dispatch import float_obstacle, implementation, kernels_possible, size_class
from aime_kernels.slot_attention import reference

_MOST_SLOTS, _MOST_TILE = 8, 4096


def slot_attention(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Let S slots compete for P positions, then read the mean value of each slot's positions.

    slots: [N, S, d]; keys, values: [N, P, d], one floating dtype. Returns
    - updates [N, S, d] = maps @ values, a convex combination of the values (a mean, never a sum);
    - assignments [N, S, P], softmax over slots of q.k / sqrt(d): sums to 1 over S;
    - maps [N, S, P] = assignments normalised over positions: sums to 1 over P.

    The normalisation over positions is a softmax of the log-assignments, which is the same ratio without an epsilon:
    a slot that loses everywhere still gets a proper, finite map.

    Why an op: two products, two softmaxes and an exp are some 8 launches and write or read the logits six times; the
    kernels read keys and values once and write each map once. Built for float32 and float64, up to 8 slots and a
    padded P x d of 4096; the rest goes to the reference.
    """
    plain = reference.slot_attention
    if not kernels_possible(slots.device):
        return plain(slots, keys, values)
    inputs = (slots, keys, values)
    reason = float_obstacle(*inputs) or _obstacle(*inputs)
    classes = (size_class(slots.shape[0]), *slots.shape[1:], *keys.shape[1:2])
    return implementation("slot_attention", plain, _slot_attention, inputs, reason, classes, 3)(*inputs)


def _obstacle(slots: Tensor, keys: Tensor, values: Tensor) -> str | None:
    if slots.dim() != 3 or keys.dim() != 3 or keys.shape != values.shape or slots.shape[::2] != keys.shape[::2]:
        return f"shapes {tuple(slots.shape)}, {tuple(keys.shape)} and {tuple(values.shape)} do not fit"
    _, count, dim = slots.shape
    tile = (1 << max(keys.shape[1] - 1, 0).bit_length()) * (1 << max(dim - 1, 0).bit_length())
    if not 1 <= count <= _MOST_SLOTS or not keys.shape[1] or not dim or tile > _MOST_TILE:
        return (
            f"{count} slots, {keys.shape[1]} positions of {dim} numbers; built for 1 to {_MOST_SLOTS} slots and a "
            f"padded tile of 1 to {_MOST_TILE}"
        )
    return None


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its rows are contiguous: keys and values are halves of one projection."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@torch.library.custom_op("aime_kernels::slot_attention", mutates_args=())
def _slot_attention(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from aime_kernels.slot_attention.triton_kernel import slot_attention_triton

    return slot_attention_triton(slots.contiguous(), _rows(keys), _rows(values))


@_slot_attention.register_fake
def _(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shape = (slots.shape[0], slots.shape[1], keys.shape[1])
    return slots.new_empty(slots.shape), slots.new_empty(shape), slots.new_empty(shape)


@torch.library.custom_op("aime_kernels::slot_attention_backward", mutates_args=())
def _slot_attention_backward(
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    assignments: Tensor,
    maps: Tensor,
    grad_updates: Tensor,
    grad_assignments: Tensor,
    grad_maps: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    from aime_kernels.slot_attention.triton_kernel import slot_attention_backward_triton

    rest = [x.contiguous() for x in (assignments, maps, grad_updates, grad_assignments, grad_maps)]
    return slot_attention_backward_triton(slots.contiguous(), _rows(keys), _rows(values), rest)


@_slot_attention_backward.register_fake
def _(slots: Tensor, keys: Tensor, values: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return slots.new_empty(slots.shape), slots.new_empty(keys.shape), slots.new_empty(keys.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1], output[2])


_slot_attention.register_autograd(
    lambda ctx, *grads: _slot_attention_backward(*ctx.saved_tensors, *grads), setup_context=_save
)
