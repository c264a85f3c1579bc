"""Float32 numbers in 8 bits: a float of 3 bits of mantissa (e4m3), and a power of two for each block.

A float, because AdamW steps every entry by about as much, however small its gradient is: steps of one size, as an
integer has them, would make zeros of all entries below 1/254 of the largest. Known as quantised all-gather (ZeRO++,
arXiv 2306.10209), there with integers.
"""

import math

import torch
from torch import Tensor

BLOCK = 128
"""Entries that share a power of two."""
CODE = torch.float8_e4m3fn
BYTES = 1 + 1 / BLOCK
"""Sent for an entry."""
_MANTISSA, _BIAS = 23, 127  # of float32
_TOP = 7
"""The largest entry of a block is scaled into [2^7, 2^8): e4m3 ends at 448, and rounding may carry to 2^8."""


def packed(flat: Tensor) -> Tensor:
    """Float32 [N] in uint8 [N + N / BLOCK]: the codes, then the exponent of each block; N is a multiple of BLOCK.

    Of an entry of at least 2^-13 of its block's largest, the code is off by at most 2^-4 of the entry; of a smaller one
    by at most 2^-17 of the largest. Entries below 2^-132, which float32 has as denormals, may become zeros. Zeros stay
    zeros. Up to 3e38 all codes are finite; NaN and infinity give NaN. Nothing waits for the device.
    """
    blocks = flat.view(-1, BLOCK)
    # Powers of two are made from bits: a card's exp2 need not be exact.
    largest = torch.linalg.vector_norm(blocks, math.inf, 1).view(torch.int32) >> _MANTISSA
    exponents = (largest - _TOP).clamp(min=1)
    found = torch.empty(len(flat) + len(blocks), dtype=torch.uint8, device=flat.device)
    found[: len(flat)].view(CODE).view_as(blocks).copy_(blocks * _power(2 * _BIAS - exponents))
    found[len(flat) :].copy_(exponents)
    return found


def unpacked(messages: Tensor, parts: int) -> Tensor:
    """Float32 [parts N] of so many messages of `packed`, one after the other; exactly what their codes mean."""
    rows = messages.view(parts, -1)
    numel = rows.shape[1] // (BLOCK + 1) * BLOCK
    codes, exponents = rows[:, :numel].view(CODE), rows[:, numel:].to(torch.int32)
    # bfloat16 has every code, in half the bytes of float32.
    return (codes.to(torch.bfloat16).view(-1, BLOCK) * _power(exponents.flatten())).flatten()


def _power(exponents: Tensor) -> Tensor:
    """2^(e - 127) as float32 [N, 1], for int32 e from 1 to 254."""
    return (exponents << _MANTISSA).view(torch.float32).unsqueeze(1)
