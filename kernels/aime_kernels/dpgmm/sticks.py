"""Kumaraswamy sticks and the stick-breaking weights they give, entirely in the log domain.

A Kumaraswamy(a, b) stick is v = (1 - (1 - U)^(1/b))^(1/a), U uniform (Kumaraswamy 1980). With L(x) = -log(1 - e^-x) it
is one map applied twice: -log v = L(t) / a where t = -log(1 - U) / b, and -log(1 - v) = L(-log v). Both steps compute
log(x) instead of x, so a stick stays exact where v or 1 - v is far below the smallest positive float.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def kumaraswamy_log_sticks(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Sample sticks by inverse CDF: log v and log(1 - v), each of the broadcast shape, finite, with finite gradients.

    log_a, log_b: logarithms of the positive parameters, within about [-5, 5]; uniform: in [0, 1], same dtype. The
    uniforms 0 and 1 are moved half a rounding step into the interval.
    """
    eps = torch.finfo(uniform.dtype).eps
    u = uniform.clamp(0.5 * eps, 1.0 - 0.5 * eps)
    return log_sticks_at(torch.log1p(-u).neg().log(), log_a, log_b)


def log_sticks_at(log_exponential: Tensor, log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor]:
    """`kumaraswamy_log_sticks` with the uniform given as log(-log(1 - U)), which is accurate near 0 and 1."""
    s = log_exponential - log_b
    log_v = _log_one_minus_exp(s) * torch.exp(-log_a)
    return log_v, _log_one_minus_exp(_log_minus_log_one_minus_exp(s) - log_a)


def stick_breaking_log_weights(log_v: Tensor, log_one_minus_v: Tensor) -> Tensor:
    """log pi_k = log v_k + sum_{j<k} log(1 - v_j), the last stick being 1: [..., K-1] twice -> [..., K].

    By construction the weights sum to 1 up to rounding; nothing is renormalised.
    """
    return F.pad(log_v, (0, 1)) + F.pad(log_one_minus_v.cumsum(-1), (1, 0))


def _log_one_minus_exp(s: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x = e^s: s for s -> -inf, 0 for s -> +inf (s below 80)."""
    x, small = s.exp(), s < math.log(math.log(2.0))
    # The branch that is not selected is evaluated at a harmless point, so its gradient is finite times zero.
    return torch.where(small, s + _log_ratio_below(x, small), torch.log1p(-torch.where(small, 1.0, x).neg().exp()))


def _log_minus_log_one_minus_exp(s: Tensor) -> Tensor:
    """log(-log(1 - exp(-x))) for x = e^s: log(-s) for s -> -inf, -x for s -> +inf."""
    x, small = s.exp(), s < math.log(math.log(2.0))
    below = torch.where(small, s + _log_ratio_below(x, small), -1.0).neg().log()
    y = torch.where(small, 1.0, x).neg().exp().clamp_min(_smallest(x))
    return torch.where(small, below, torch.log(-torch.log1p(-y) / y) - x)


def _log_ratio_below(x: Tensor, small: Tensor) -> Tensor:
    """log((1 - exp(-x)) / x) where `small`, a smooth function that is 0 at x = 0."""
    x = torch.where(small, x, 1.0).clamp_min(_smallest(x))
    return torch.log(-torch.expm1(-x) / x)


def _smallest(x: Tensor) -> float:
    """A positive float whose reciprocal and rounding error are still normal numbers."""
    return torch.finfo(x.dtype).tiny * 1e6
