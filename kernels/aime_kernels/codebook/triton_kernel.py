"""Distances to all codes and their minimum, without a matrix of distances; one program handles 64 encodings.

Products are full float32 (`input_precision="ieee"`): they run beside the tensor cores. The codes are passed once, for
the least and the second least score of each encoding. Only where these are equally near a second pass looks for the
first of all codes that are.
"""

import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.codebook.op import SAME
from aime_kernels.launch import Launch

LAUNCH = Launch(64, 8, 80)
CODES = tl.constexpr(64)
"""Codes of one tile."""
DEPTH = tl.constexpr(16)
"""Dimensions of one product."""


@triton.jit
def scores_of(encodings, codes, row, rows, code, count, D: tl.constexpr):
    """|c|^2 - 2 x.c of the encodings `row` and the codes `code`, [len(row), len(code)].

    Infinite beyond the last code and where it is not a number.
    """
    products = tl.zeros([row.shape[0], code.shape[0]], tl.float32)
    norm = tl.zeros([code.shape[0]], tl.float32)
    for first in range(0, D, DEPTH):
        d = first + tl.arange(0, DEPTH)
        x = tl.load(encodings + row[:, None] * D + d[None, :], mask=(row[:, None] < rows) & (d[None, :] < D), other=0.0)
        c = tl.load(codes + code[:, None] * D + d[None, :], mask=(code[:, None] < count) & (d[None, :] < D), other=0.0)
        norm += tl.sum(c * c, 1)
        products = tl.dot(x, tl.trans(c), products, input_precision="ieee")
    scores = norm[None, :] - 2.0 * products
    return tl.where((code[None, :] < count) & (scores == scores), scores, float("inf"))


@triton.jit
def nearest_codes_kernel(
    encodings,  # [rows, D]
    codes,  # [count, D]
    ids,  # int64 [rows]
    distances,  # [rows]
    rows,
    count,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    TOLERANCE: tl.constexpr,
):
    """The first of the nearest codes, and the distance to the nearest."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    best = tl.full([ROWS], float("inf"), tl.float32)
    second, chosen = best, tl.full([ROWS], 0, tl.int32) + (count - 1)
    for first in range(0, count, CODES):
        code = first + tl.arange(0, CODES)
        scores = scores_of(encodings, codes, row, rows, code, count, D)
        low = tl.min(scores, 1)
        at = tl.min(tl.where(scores == low[:, None], code[None, :], count), 1)
        other = tl.min(tl.where(code[None, :] == at[:, None], float("inf"), scores), 1)
        second = tl.minimum(tl.maximum(best, low), tl.minimum(second, other))
        chosen = tl.where(low < best, at, chosen)
        best = tl.minimum(best, low)
    limit = tl.where(best < float("inf"), best + TOLERANCE, float("-inf"))
    if tl.max((second <= limit).to(tl.int32), 0) > 0:
        chosen = tl.full([ROWS], 0, tl.int32) + (count - 1)
        for first in range(0, count, CODES):
            code = first + tl.arange(0, CODES)
            scores = scores_of(encodings, codes, row, rows, code, count, D)
            near = tl.min(tl.where(scores <= limit[:, None], code[None, :], count - 1), 1)
            chosen = tl.minimum(chosen, near)
    square = tl.zeros([ROWS], tl.float32)
    for first in range(0, D, DEPTH):
        d = first + tl.arange(0, DEPTH)
        x = tl.load(encodings + row[:, None] * D + d[None, :], mask=(row[:, None] < rows) & (d[None, :] < D), other=0.0)
        square += tl.sum(x * x, 1)
    tl.store(ids + row, chosen.to(tl.int64), mask=row < rows)
    distance = best + square
    # A select, unlike a maximum, keeps a NaN.
    tl.store(distances + row, tl.sqrt(tl.where(distance < 0, 0.0, distance)), mask=row < rows)


def launch(kernel: triton.JITFunction, tensors: list[Tensor]) -> None:
    """tensors: encodings [M, d], codes [n, d], ids and distances [M]."""
    rows, dim = tensors[0].shape
    LAUNCH.start(
        kernel,
        (triton.cdiv(rows, LAUNCH.block),),
        *(tensor.contiguous() for tensor in tensors),
        rows,
        tensors[1].shape[0],
        D=dim,
        ROWS=LAUNCH.block,
        TOLERANCE=SAME * dim,
    )
