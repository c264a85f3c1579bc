"""Special functions for kernels, made of exp and log only, so that the interpreter runs the same code as a GPU.

Compensated forms (Kahan): with u = 1 + x rounded, log(u) / (u - 1) is smooth in u, so the rounding of u cancels.
They need a correctly rounded difference: launch with `enable_fp_fusion=False`.
"""

import triton
import triton.language as tl

LOG_LOG_2 = tl.constexpr(-0.36651292058166435)
"""log x at x = log 2, where the two forms of log(1 - exp(-x)) meet."""


@triton.jit
def log1p(x):
    """log(1 + x), x > -1, to rounding."""
    u = 1.0 + x
    flat = u == 1.0
    return tl.where(flat, x, tl.log(u) * (x / tl.where(flat, 1.0, u - 1.0)))


@triton.jit
def ratio_below(u):
    """(1 - u) / -log u for 0 < u <= 1: (1 - e^-x) / x at u = e^-x."""
    flat = u == 1.0
    return tl.where(flat, 1.0, (u - 1.0) / tl.where(flat, -1.0, tl.log(u)))


@triton.jit
def remainder(s):
    """L(s) = log(1 - exp(-x)) and its derivative x / (e^x - 1), x = e^s."""
    x = tl.exp(tl.minimum(s, 80.0))
    u = tl.exp(-x)
    small = s < LOG_LOG_2
    # Each branch is evaluated at a harmless point where the other one is selected.
    ratio = ratio_below(tl.where(small, u, 1.0))
    beyond = tl.where(small, 0.5, u)
    value = tl.where(small, s + tl.log(ratio), log1p(-beyond))
    slope = tl.where(small, u / ratio, x * beyond / (1.0 - beyond))
    return value, slope


@triton.jit
def log_minus_remainder(s, TINY: tl.constexpr):
    """log(-L(s)) and its derivative L'(s) / L(s), finite also where 1 - exp(-x) rounds to 0 or 1."""
    x = tl.exp(tl.minimum(s, 80.0))
    u = tl.exp(-x)
    small = s < LOG_LOG_2
    ratio = ratio_below(tl.where(small, u, 1.0))
    minus = tl.where(small, -(s + tl.log(ratio)), 1.0)
    y = tl.where(small, 0.5, tl.maximum(u, TINY))
    quotient = -log1p(-y) / y
    value = tl.where(small, tl.log(minus), tl.log(quotient) - x)
    slope = tl.where(small, -u / (ratio * minus), -x / ((1.0 - y) * quotient))
    return value, slope


@triton.jit
def digamma_1p(x):
    """digamma(1 + x) for x >= 0: seven steps of its recurrence, then the asymptotic series at 8 + x."""
    steps = tl.zeros_like(x)
    for i in tl.static_range(1, 8):
        steps += 1.0 / (x + i)
    inverse = 1.0 / (x + 8.0)
    square = inverse * inverse
    series = 1.0 / 240.0 - square * (1.0 / 132.0 - square * (691.0 / 32760.0))
    series = 1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0 - square * series))
    return tl.log(x + 8.0) - 0.5 * inverse - square * series - steps


@triton.jit
def trigamma_1p(x):
    """trigamma(1 + x), the derivative of `digamma_1p`."""
    steps = tl.zeros_like(x)
    for i in tl.static_range(1, 8):
        term = 1.0 / (x + i)
        steps += term * term
    inverse = 1.0 / (x + 8.0)
    square = inverse * inverse
    series = 1.0 / 30.0 - square * (5.0 / 66.0 - square * (691.0 / 2730.0))
    series = 1.0 / 6.0 - square * (1.0 / 30.0 - square * (1.0 / 42.0 - square * series))
    return inverse + 0.5 * square + inverse * square * series + steps
