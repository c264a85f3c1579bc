"""Sticks to log-weights, and the sticks' divergence, forward and backward; one program handles 32 rows.

Rows of J = K - 1 sticks are read as one flat range, which is aligned and therefore loaded 16 bytes at a time.
`tl.gather` moves values between that range, the range of K weights, and a grid [rows, WIDTH] for scans along rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.dpgmm.divergence import NODES, SPAN
from aime_kernels.dpgmm.triton_special import digamma_1p, log1p, log_minus_remainder, remainder, trigamma_1p
from aime_kernels.launch import Launch

# Fused multiply-adds would undo the compensated forms.
LAUNCH = Launch(32, 4, None)
ROWS = tl.constexpr(LAUNCH.block)
EULER_GAMMA = tl.constexpr(0.5772156649015329)
COUNT = tl.constexpr(NODES)
FIRST_NODE = tl.constexpr(SPAN[0])
NODE_STEP = tl.constexpr((SPAN[1] - SPAN[0]) / (NODES - 1))


@triton.jit
def regrid(values, FROM: tl.constexpr, TO: tl.constexpr, SHIFT: tl.constexpr, LANES: tl.constexpr):
    """Value at (row, column) of a grid TO wide <- (row, column + SHIFT) of a grid FROM wide; 0 beyond its columns."""
    lane = tl.arange(0, LANES)
    column = lane % TO + SHIFT
    source = lane // TO * FROM + column
    inside = (column >= 0) & (column < FROM) & (source < LANES)
    return tl.where(inside, tl.gather(values, tl.where(inside, source, 0), 0), 0.0)


@triton.jit
def load_rows(pointer, rows, WIDE: tl.constexpr, LANES: tl.constexpr):
    """The program's rows of a [rows, WIDE] array as one flat range."""
    # A launcher makes an argument of 1 a constant, which has no method `to`.
    start, lane = tl.program_id(0).to(tl.int64) * (ROWS * WIDE), tl.arange(0, LANES)
    inside = (lane < ROWS * WIDE) & (start + lane < tl.cast(rows, tl.int64) * WIDE)
    return tl.load(pointer + start + lane, mask=inside, other=0.0)


@triton.jit
def store_rows(pointer, values, rows, WIDE: tl.constexpr, LANES: tl.constexpr):
    """The inverse of `load_rows`."""
    start, lane = tl.program_id(0).to(tl.int64) * (ROWS * WIDE), tl.arange(0, LANES)
    inside = (lane < ROWS * WIDE) & (start + lane < tl.cast(rows, tl.int64) * WIDE)
    tl.store(pointer + start + lane, values, mask=inside)


@triton.jit
def log_exponential(uniform, EPS: tl.constexpr):
    """log(-log(1 - U)), where U = 0 and 1 are moved half a rounding step inside."""
    return tl.log(-log1p(-tl.minimum(tl.maximum(uniform, 0.5 * EPS), 1.0 - 0.5 * EPS)))


@triton.jit
def node_and_weight(i, like):
    """Node i of `divergence.QUADRATURE` and its weight, [1] in the dtype of `like`; computed, not loaded."""
    y = FIRST_NODE + NODE_STEP * (tl.zeros([1], like.dtype) + i)
    away = tl.exp(-y)
    node = y - away
    return node, NODE_STEP * (1.0 + away) * tl.exp(node - tl.exp(node))


@triton.jit
def stick_weights_fwd_kernel(
    log_a,  # [rows, J]
    log_b,  # [rows, J]
    uniform,  # [rows, J]
    log_pi,  # [rows, J + 1]
    rows,
    J: tl.constexpr,
    EPS: tl.constexpr,
    TINY: tl.constexpr,
):
    """log pi_k = log v_k + sum_{j<k} log(1 - v_j)."""
    WIDTH: tl.constexpr = triton.next_power_of_2(J + 1)
    LANES: tl.constexpr = ROWS * WIDTH
    a = load_rows(log_a, rows, J, LANES)
    s = log_exponential(load_rows(uniform, rows, J, LANES), EPS) - load_rows(log_b, rows, J, LANES)
    value, _ = remainder(s)
    inner, _ = log_minus_remainder(s, TINY)
    rest, _ = remainder(inner - a)
    # Shifted by one before the scan: a prefix must not contain its own stick.
    before = tl.cumsum(tl.reshape(regrid(rest, J, WIDTH, -1, LANES), [ROWS, WIDTH]), 1)
    weights = regrid(value * tl.exp(-a), J, WIDTH, 0, LANES) + tl.reshape(before, [LANES])
    store_rows(log_pi, regrid(weights, WIDTH, J + 1, 0, LANES), rows, J + 1, LANES)


@triton.jit
def stick_weights_bwd_kernel(
    log_a,  # [rows, J]
    log_b,  # [rows, J]
    uniform,  # [rows, J]
    grad_log_pi,  # [rows, J + 1]
    grad_log_a,  # [rows, J]
    grad_log_b,  # [rows, J]
    rows,
    J: tl.constexpr,
    EPS: tl.constexpr,
    TINY: tl.constexpr,
):
    """log v_j contributes to weight j, log(1 - v_j) to every later one."""
    WIDTH: tl.constexpr = triton.next_power_of_2(J + 1)
    LANES: tl.constexpr = ROWS * WIDTH
    grad = load_rows(grad_log_pi, rows, J + 1, LANES)
    grid = tl.reshape(regrid(grad, J + 1, WIDTH, 0, LANES), [ROWS, WIDTH])
    later = tl.reshape(tl.cumsum(grid, 1, reverse=True), [LANES])
    by_value = regrid(grad, J + 1, J, 0, LANES)
    by_rest = regrid(later, WIDTH, J, 1, LANES)
    a = load_rows(log_a, rows, J, LANES)
    s = log_exponential(load_rows(uniform, rows, J, LANES), EPS) - load_rows(log_b, rows, J, LANES)
    value, slope = remainder(s)
    inner, inner_slope = log_minus_remainder(s, TINY)
    _, rest_slope = remainder(inner - a)
    by_value *= tl.exp(-a)
    by_rest *= rest_slope
    store_rows(grad_log_a, -(by_value * value + by_rest), rows, J, LANES)
    store_rows(grad_log_b, -(by_value * slope + by_rest * inner_slope), rows, J, LANES)


@triton.jit
def stick_kl_fwd_kernel(
    log_a,  # [rows, J]
    log_b,  # [rows, J]
    mean,  # [rows], E alpha
    mean_log,  # [rows], E log alpha
    kl,  # [rows, J]
    rows,
    J: tl.constexpr,
    TINY: tl.constexpr,
):
    """KL(Kumaraswamy(a, b) || Beta(1, alpha)) averaged over alpha, with digamma(b) + 1/b = digamma(1 + b)."""
    WIDTH: tl.constexpr = triton.next_power_of_2(J + 1)
    LANES: tl.constexpr = ROWS * WIDTH
    a, b = load_rows(log_a, rows, J, LANES), load_rows(log_b, rows, J, LANES)
    m = tl.zeros_like(a)
    for i in range(COUNT):
        node, weight = node_and_weight(i, a)
        inner, _ = log_minus_remainder(node - b, TINY)
        rest, _ = remainder(inner - a)
        m -= weight * rest
    row = tl.arange(0, LANES) // J % ROWS
    expected = tl.gather(load_rows(mean, rows, 1, ROWS), row, 0)
    expected_log = tl.gather(load_rows(mean_log, rows, 1, ROWS), row, 0)
    entropy = a + b - (1.0 - tl.exp(-a)) * (EULER_GAMMA + digamma_1p(tl.exp(b))) - (1.0 - tl.exp(-b))
    store_rows(kl, entropy - expected_log + (expected - 1.0) * m, rows, J, LANES)


@triton.jit
def stick_kl_bwd_kernel(
    log_a,  # [rows, J]
    log_b,  # [rows, J]
    mean,  # [rows]
    grad_kl,  # [rows, J]
    grad_log_a,  # [rows, J]
    grad_log_b,  # [rows, J]
    grad_mean,  # [rows]
    grad_mean_log,  # [rows]
    rows,
    J: tl.constexpr,
    TINY: tl.constexpr,
):
    """One quadrature for M and its two derivatives."""
    WIDTH: tl.constexpr = triton.next_power_of_2(J + 1)
    LANES: tl.constexpr = ROWS * WIDTH
    a, b = load_rows(log_a, rows, J, LANES), load_rows(log_b, rows, J, LANES)
    grad = load_rows(grad_kl, rows, J, LANES)
    m, m_by_a, m_by_b = tl.zeros_like(a), tl.zeros_like(a), tl.zeros_like(a)
    for i in range(COUNT):
        node, weight = node_and_weight(i, a)
        inner, inner_slope = log_minus_remainder(node - b, TINY)
        rest, rest_slope = remainder(inner - a)
        m -= weight * rest
        m_by_a += weight * rest_slope
        m_by_b += weight * rest_slope * inner_slope
    more = tl.gather(load_rows(mean, rows, 1, ROWS), tl.arange(0, LANES) // J % ROWS, 0) - 1.0
    inverse_a, inverse_b, plain_b = tl.exp(-a), tl.exp(-b), tl.exp(b)
    by_a = 1.0 - inverse_a * (EULER_GAMMA + digamma_1p(plain_b)) + more * m_by_a
    by_b = 1.0 - (1.0 - inverse_a) * plain_b * trigamma_1p(plain_b) - inverse_b + more * m_by_b
    store_rows(grad_log_a, grad * by_a, rows, J, LANES)
    store_rows(grad_log_b, grad * by_b, rows, J, LANES)
    # Sums over rows: outside its J columns the grid is zero.
    for_mean = tl.sum(tl.reshape(regrid(grad * m, J, WIDTH, 0, LANES), [ROWS, WIDTH]), 1)
    for_log = tl.sum(tl.reshape(regrid(grad, J, WIDTH, 0, LANES), [ROWS, WIDTH]), 1)
    store_rows(grad_mean, for_mean, rows, 1, ROWS)
    store_rows(grad_mean_log, -for_log, rows, 1, ROWS)


def launch(kernel: triton.JITFunction, tensors: list[Tensor]) -> None:
    """tensors: the kernel's arguments, the first of them [rows, J]."""
    rows, sticks = tensors[0].shape
    numbers = torch.finfo(tensors[0].dtype)
    constants = {"EPS": numbers.eps, "TINY": 1e6 * numbers.tiny}
    LAUNCH.start(
        kernel,
        (triton.cdiv(rows, LAUNCH.block),),
        *(tensor.contiguous() for tensor in tensors),
        rows,
        J=sticks,
        **{name: value for name, value in constants.items() if name in kernel.arg_names},
    )
