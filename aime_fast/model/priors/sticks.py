"""Weights of a mixture by stick-breaking (Sethuraman 1994), with a Kumaraswamy posterior of the sticks."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from aime_fast.model.parts.layers import in_float32, wide
from aime_kernels import expected_kumaraswamy_beta_kl, gamma_kl

LOG_SHAPE_RANGE = (math.log(0.05), math.log(50.0))
"""Bounds of log a, log b, log c and log r, within which the closed forms keep their stated accuracy."""


def stick_divergences(
    log_a: Tensor, log_b: Tensor, log_shape: Tensor, log_rate: Tensor, alpha_prior: Tensor
) -> dict[str, Tensor]:
    """`stick_kl` and `alpha_kl` in nats, [...], of sticks [..., K-1] and q(alpha) = Gamma(c, r), [...].

    stick_kl = E_alpha KL(Kumaraswamy(a, b) || Beta(1, alpha)), summed over the sticks (Nalisnick & Smyth 2017, eq. 12),
    is exact: alpha enters only through E[alpha] = c/r and E[log alpha] = digamma(c) - log r. alpha_kl = KL(Gamma(c, r)
    || Gamma(a0, b0)), with a0 and b0 in `alpha_prior` [2].
    """
    mean = (log_shape - log_rate).exp()
    mean_log = torch.digamma(log_shape.exp()) - log_rate
    sticks = in_float32(expected_kumaraswamy_beta_kl)(log_a, log_b, mean[..., None], mean_log[..., None])
    return {"stick_kl": sticks.sum(-1), "alpha_kl": gamma_kl(log_shape.exp(), log_rate.exp(), *alpha_prior)}


def expected_weights(sticks: Tensor) -> Tensor:
    """E[pi_k], [K], from the means of independent sticks v_1 .. v_{K-1}, [K-1]: each takes its part of what is left."""
    one = sticks.new_ones(1)
    left = torch.cat([one, (1 - sticks).cumprod(0)])
    return left * torch.cat([sticks, one])


def kumaraswamy_mean(log_a: Tensor, log_b: Tensor) -> Tensor:
    """The mean of Kumaraswamy(a, b): b B(1 + 1/a, b), elementwise (Kumaraswamy 1980)."""
    inverse, b = (-log_a).exp(), log_b.exp()
    return (log_b + torch.lgamma(1 + inverse) + torch.lgamma(b) - torch.lgamma(1 + inverse + b)).exp()


def log_softplus(raw: Tensor) -> Tensor:
    """log softplus(raw) in float32, clamped to `LOG_SHAPE_RANGE`; the gradient passes the bounds unchanged."""
    log = F.softplus(wide(raw)).clamp_min(1e-20).log()
    return log + (log.clamp(*LOG_SHAPE_RANGE) - log).detach()


def inverse_softplus(value: Tensor) -> Tensor:
    """The x with softplus(x) = value > 0."""
    return value + torch.log(-torch.expm1(-value))
