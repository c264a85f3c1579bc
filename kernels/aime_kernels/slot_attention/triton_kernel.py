"""Slot attention of one frame a program: keys and values are read once, every map is written once.

No tensor-core product: five slots would fill a third of its smallest tile, tf32 would cost three digits, and a frame's
16 KiB of keys and values take longer to arrive than their products. Each slot's row of logits is a sum over features.
"""

import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.launch import Launch, launch_for, on_device_of

LAUNCH = {80: Launch(1, 8, True), 86: Launch(1, 8, True), 90: Launch(1, 8, True)}


@triton.jit
def slot_attention_fwd_kernel(
    slots,  # [N, SLOTS, D]
    keys,  # [N, P, D], rows contiguous
    values,  # [N, P, D], rows contiguous
    updates,  # [N, SLOTS, D]
    assignments,  # [N, SLOTS, P]
    maps,  # [N, SLOTS, P]
    key_batch,
    key_row,
    value_batch,
    value_row,
    SLOTS: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    P_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Softmax over slots, then over positions, then the mean value of each slot."""
    n = tl.program_id(0).to(tl.int64)
    p, d = tl.arange(0, P_PAD), tl.arange(0, D_PAD)
    inside, row = (p[:, None] < P) & (d[None, :] < D), p[:, None].to(tl.int64)
    key = tl.load(keys + n * key_batch + row * key_row + d[None, :], mask=inside, other=0.0)
    value = tl.load(values + n * value_batch + row * value_row + d[None, :], mask=inside, other=0.0)
    logits = ()
    for s in tl.static_range(SLOTS):
        query = tl.load(slots + (n * SLOTS + s) * D + d, mask=d < D, other=0.0) * SCALE
        logits = logits + (tl.sum(key * query[None, :], 1),)
    top = logits[0]
    for s in tl.static_range(1, SLOTS):
        top = tl.maximum(top, logits[s])
    total = tl.zeros_like(top)
    for s in tl.static_range(SLOTS):
        total += tl.exp(logits[s] - top)
    log_total = tl.log(total)
    for s in tl.static_range(SLOTS):
        log_assignment = (logits[s] - top) - log_total
        at = (n * SLOTS + s) * P + p
        tl.store(assignments + at, tl.exp(log_assignment), mask=p < P)
        log_assignment = tl.where(p < P, log_assignment, float("-inf"))
        weight = tl.exp(log_assignment - tl.max(log_assignment, 0))
        place = weight / tl.sum(weight, 0)
        tl.store(maps + at, place, mask=p < P)
        tl.store(updates + (n * SLOTS + s) * D + d, tl.sum(place[:, None] * value, 0), mask=d < D)


@triton.jit
def slot_attention_bwd_kernel(
    slots,  # [N, SLOTS, D]
    keys,  # [N, P, D], rows contiguous
    values,  # [N, P, D], rows contiguous
    assignments,  # [N, SLOTS, P]
    maps,  # [N, SLOTS, P]
    grad_updates,  # [N, SLOTS, D]
    grad_assignments,  # [N, SLOTS, P]
    grad_maps,  # [N, SLOTS, P]
    grad_slots,  # [N, SLOTS, D]
    grad_keys,  # [N, P, D]
    grad_values,  # [N, P, D]
    key_batch,
    key_row,
    value_batch,
    value_row,
    SLOTS: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    P_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    SCALE: tl.constexpr,
):
    """Through both softmaxes in the log domain; each is g - softmax * sum(g) of what reaches its logarithm."""
    n = tl.program_id(0).to(tl.int64)
    p, d = tl.arange(0, P_PAD), tl.arange(0, D_PAD)
    inside, row = (p[:, None] < P) & (d[None, :] < D), p[:, None].to(tl.int64)
    flat = n * (P * D) + p[:, None] * D + d[None, :]
    value = tl.load(values + n * value_batch + row * value_row + d[None, :], mask=inside, other=0.0)
    by_value = tl.zeros_like(value)
    total = tl.sum(by_value, 1)
    by_log, shares = (), ()
    for s in tl.static_range(SLOTS):
        at = (n * SLOTS + s) * P + p
        place = tl.load(maps + at, mask=p < P, other=0.0)
        share = tl.load(assignments + at, mask=p < P, other=0.0)
        pull = tl.load(grad_updates + (n * SLOTS + s) * D + d, mask=d < D, other=0.0)
        by_place = tl.load(grad_maps + at, mask=p < P, other=0.0) + tl.sum(value * pull[None, :], 1)
        by_value += place[:, None] * pull[None, :]
        direct = share * tl.load(grad_assignments + at, mask=p < P, other=0.0)
        through = place * (by_place - tl.sum(place * by_place, 0)) + direct
        total += through
        by_log = by_log + (through,)
        shares = shares + (share,)
    tl.store(grad_values + flat, by_value, mask=inside)
    key = tl.load(keys + n * key_batch + row * key_row + d[None, :], mask=inside, other=0.0)
    by_key = tl.zeros_like(key)
    for s in tl.static_range(SLOTS):
        query = tl.load(slots + (n * SLOTS + s) * D + d, mask=d < D, other=0.0)
        by_logit = SCALE * (by_log[s] - shares[s] * total)
        by_key += by_logit[:, None] * query[None, :]
        tl.store(grad_slots + (n * SLOTS + s) * D + d, tl.sum(by_logit[:, None] * key, 0), mask=d < D)
    tl.store(grad_keys + flat, by_key, mask=inside)


def slot_attention_triton(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """slots contiguous [N, S, D]; keys, values [N, P, D] with contiguous rows -> updates, assignments, maps."""
    shape = (*slots.shape[:2], keys.shape[1])
    out = slots.new_empty(slots.shape), slots.new_empty(shape), slots.new_empty(shape)
    _launch(slot_attention_fwd_kernel, [slots, keys, values, *out], slots, keys, values)
    return out


def slot_attention_backward_triton(
    slots: Tensor, keys: Tensor, values: Tensor, rest: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """rest: assignments, maps and the gradients of updates, assignments, maps, all contiguous."""
    out = slots.new_empty(slots.shape), slots.new_empty(keys.shape), slots.new_empty(keys.shape)
    _launch(slot_attention_bwd_kernel, [slots, keys, values, *rest, *out], slots, keys, values)
    return out


def _launch(kernel: triton.JITFunction, tensors: list[Tensor], slots: Tensor, keys: Tensor, values: Tensor) -> None:
    frames, count, dim = slots.shape
    positions = keys.shape[1]
    if frames:
        with on_device_of(slots):
            kernel[(frames,)](
                *tensors,
                keys.stride(0),
                keys.stride(1),
                values.stride(0),
                values.stride(1),
                SLOTS=count,
                P=positions,
                D=dim,
                P_PAD=triton.next_power_of_2(positions),
                D_PAD=triton.next_power_of_2(dim),
                SCALE=dim**-0.5,
                **launch_for(LAUNCH, slots.device).options(),
            )
