"""Slot attention, one frame per program: keys and values are read once, every map is written once.

There is no tensor-core product: five slots would fill a third of its smallest tile, and TF32 would cost three digits.
"""

import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.dispatch import padded_size
from aime_kernels.launch import Launch

# For the largest tile; see `for_tile`.
LAUNCH = Launch(1, 8, 80)
# The backward pass holds twice as much in registers: with twice the warps two programs still share a multiprocessor.
BACKWARD_LAUNCH = Launch(1, 16, 80)


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
    SCALE: tl.constexpr,
):
    """Softmax over slots, then over positions, then the mean value of each slot."""
    n = tl.program_id(0).to(tl.int64)
    p, d = tl.arange(0, triton.next_power_of_2(P)), tl.arange(0, triton.next_power_of_2(D))
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
def load_maps(pointer, n, SLOTS: tl.constexpr, P: tl.constexpr, LEVELS: tl.constexpr):
    """The maps [SLOTS, P] of frame n as one tile, both sides padded, in 16-byte loads: one map alone is too short."""
    s, p = tl.arange(0, 2**LEVELS)[None, :], tl.arange(0, triton.next_power_of_2(P))[:, None]
    return tl.load(pointer + n * (SLOTS * P) + s * P + p, mask=(s < SLOTS) & (p < P), other=0.0)


@triton.jit
def columns(tile, LEVELS: tl.constexpr):
    """The columns of a tile [P, 2**LEVELS] as a tuple, by halving it LEVELS times."""
    parts = (tile,)
    for level in tl.static_range(LEVELS):
        halves = ()
        for i in tl.static_range(2**level):
            pair = tl.reshape(parts[i], [tile.shape[0], 2, 2 ** (LEVELS - level - 1)])
            low, high = tl.split(tl.trans(pair, 0, 2, 1))
            halves = halves + (low, high)
        parts = halves
    vectors = ()
    for i in tl.static_range(2**LEVELS):
        vectors = vectors + (tl.reshape(parts[i], [tile.shape[0]]),)
    return vectors


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
    SCALE: tl.constexpr,
    LEVELS: tl.constexpr,  # 2**LEVELS >= SLOTS
):
    """Both softmaxes are differentiated in the log domain: the gradient of each is g - softmax * sum(g).

    The gradient of the values is stored before keys and assignments are loaded, so that both halves use the same
    registers.
    """
    n = tl.program_id(0).to(tl.int64)
    p, d = tl.arange(0, triton.next_power_of_2(P)), tl.arange(0, triton.next_power_of_2(D))
    inside, row = (p[:, None] < P) & (d[None, :] < D), p[:, None].to(tl.int64)
    flat = n * (P * D) + p[:, None] * D + d[None, :]
    value = tl.load(values + n * value_batch + row * value_row + d[None, :], mask=inside, other=0.0)
    place = columns(load_maps(maps, n, SLOTS, P, LEVELS), LEVELS)
    by_map = columns(load_maps(grad_maps, n, SLOTS, P, LEVELS), LEVELS)
    by_value, through = tl.zeros_like(value), ()
    for s in tl.static_range(SLOTS):
        pull = tl.load(grad_updates + (n * SLOTS + s) * D + d, mask=d < D, other=0.0)
        by_value += place[s][:, None] * pull[None, :]
        by_place = by_map[s] + tl.sum(value * pull[None, :], 1)
        through = through + (place[s] * (by_place - tl.sum(place[s] * by_place, 0)),)
    tl.store(grad_values + flat, by_value, mask=inside)
    shares = load_maps(assignments, n, SLOTS, P, LEVELS)
    direct = columns(shares * load_maps(grad_assignments, n, SLOTS, P, LEVELS), LEVELS)
    by_log, total = (), tl.zeros_like(through[0])
    for s in tl.static_range(SLOTS):
        by_log = by_log + (through[s] + direct[s],)
        total += by_log[s]
    share = columns(shares, LEVELS)
    key = tl.load(keys + n * key_batch + row * key_row + d[None, :], mask=inside, other=0.0)
    by_key = tl.zeros_like(key)
    for s in tl.static_range(SLOTS):
        query = tl.load(slots + (n * SLOTS + s) * D + d, mask=d < D, other=0.0)
        by_logit = SCALE * (by_log[s] - share[s] * total)
        by_key += by_logit[:, None] * query[None, :]
        tl.store(grad_slots + (n * SLOTS + s) * D + d, tl.sum(by_logit[:, None] * key, 0), mask=d < D)
    tl.store(grad_keys + flat, by_key, mask=inside)


def for_tile(largest: Launch, tile: int) -> Launch:
    """The launch for `tile` padded elements of keys: fewer warps in proportion than for the largest, 4096."""
    return largest._replace(warps=max(1, largest.warps * tile // 4096))


def launch(kernel: triton.JITFunction, tensors: list[Tensor]) -> None:
    """tensors: slots, keys, values, then the other arguments of the kernel up to its last result."""
    slots, keys, values, *rest = tensors
    # Keys and values are halves of one projection: rows that are contiguous are read in place.
    keys, values = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (keys, values))
    frames, count, dim = slots.shape
    positions = keys.shape[1]
    backward = kernel is slot_attention_bwd_kernel
    for_tile(BACKWARD_LAUNCH if backward else LAUNCH, padded_size(positions, dim)).start(
        kernel,
        (frames,),
        slots.contiguous(),
        keys,
        values,
        *(tensor.contiguous() for tensor in rest),
        *keys.stride()[:2],
        *values.stride()[:2],
        SLOTS=count,
        P=positions,
        D=dim,
        SCALE=dim**-0.5,
        **({"LEVELS": (count - 1).bit_length()} if backward else {}),
    )
