"""Kullback-Leibler terms of the stick-breaking prior, in closed form."""

import math
from functools import cache

import torch
from torch import Tensor

from aime_kernels.dispatch import rounds_products
from aime_kernels.dpgmm.sticks import log_sticks_at

_EULER_GAMMA = 0.5772156649015329


def gamma_kl(concentration: Tensor, rate: Tensor, prior_concentration: Tensor, prior_rate: Tensor) -> Tensor:
    """KL(Gamma(concentration, rate) || Gamma(prior_concentration, prior_rate)), elementwise, in nats; all positive."""
    return (
        (concentration - prior_concentration) * torch.digamma(concentration)
        - torch.lgamma(concentration)
        + torch.lgamma(prior_concentration)
        + prior_concentration * (rate.log() - prior_rate.log())
        + concentration * (prior_rate / rate - 1.0)
    )


def expected_kumaraswamy_beta_kl(
    log_a: Tensor, log_b: Tensor, expected_alpha: Tensor, expected_log_alpha: Tensor
) -> Tensor:
    """`aime_kernels.expected_kumaraswamy_beta_kl` in tensor algebra.

    With M = -E[log(1 - v)] (Nalisnick and Smyth 2017, arXiv:1605.06197, averaged over alpha):

        KL = log(ab) - (1 - 1/a) (gamma + digamma(b) + 1/b) - (1 - 1/b) - E[log alpha] + (E[alpha] - 1) M
    """
    inverse_a, inverse_b = torch.exp(-log_a), torch.exp(-log_b)
    entropy = log_a + log_b - (1.0 - inverse_a) * (_EULER_GAMMA + torch.digamma(log_b.exp()) + inverse_b)
    remainder = minus_expected_log_remainder(log_a, log_b)
    return entropy - (1.0 - inverse_b) - expected_log_alpha + (expected_alpha - 1.0) * remainder


def minus_expected_log_remainder(log_a: Tensor, log_b: Tensor) -> Tensor:
    """M = -E[log(1 - v)] > 0 for v ~ Kumaraswamy(a, b), elementwise over the broadcast shape.

    The usual series b sum_m B(m/a, b) / (m + ab) converges like m^-(1 + b), too slowly for small b. Instead, v is a
    smooth function of an Exp(1) variable e^s; with s = y - e^-y its density decays doubly exponentially at both ends,
    and the trapezoidal rule converges geometrically (Takahasi and Mori 1974). The relative error is below 1e-4 for
    a, b in [0.02, 100].
    """
    # A compiler makes constants of the numbers. A CUDA graph cannot copy them from the host: they stay on the device.
    quadrature = _quadrature.__wrapped__ if torch.compiler.is_compiling() else _quadrature
    node, weight = quadrature(log_a.dtype, log_a.device)
    _, log_remainder = log_sticks_at(node, log_a[..., None], log_b[..., None])
    return -((log_remainder * weight).sum(-1) if rounds_products(log_a.device) else log_remainder @ weight)


@cache
def _quadrature(dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [torch.tensor(row, dtype=dtype, device=device) for row in QUADRATURE]


def forget_constants() -> None:
    """Drop the constants that calls keep, such as those of a call under torch's fake tensors, which have no values."""
    _quadrature.cache_clear()


SPAN, NODES = (-2.1, 3.0), 24
"""The range of y is tuned for a, b in [0.02, 100]."""
_STEP = (SPAN[1] - SPAN[0]) / (NODES - 1)
_GRID = [SPAN[0] + i * _STEP for i in range(NODES)]
_POINTS = [y - math.exp(-y) for y in _GRID]
_WEIGHTS = [_STEP * (1.0 + math.exp(-y)) * math.exp(s - math.exp(s)) for y, s in zip(_GRID, _POINTS, strict=True)]
QUADRATURE = _POINTS, _WEIGHTS
"""Nodes s and weights w with sum w f(s) ~ E[f(log X)], X ~ Exp(1)."""
