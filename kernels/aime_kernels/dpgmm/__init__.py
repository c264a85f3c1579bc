"""Dirichlet-process Gaussian mixture: sticks, weights, densities and divergences, all differentiable."""

from aime_kernels.dpgmm.density import gaussian_log_density
from aime_kernels.dpgmm.divergence import gamma_kl
from aime_kernels.dpgmm.op import expected_kumaraswamy_beta_kl, kumaraswamy_log_weights, mixture_log_density
from aime_kernels.dpgmm.sticks import kumaraswamy_log_sticks, stick_breaking_log_weights

__all__ = [
    "expected_kumaraswamy_beta_kl",
    "gamma_kl",
    "gaussian_log_density",
    "kumaraswamy_log_sticks",
    "kumaraswamy_log_weights",
    "mixture_log_density",
    "stick_breaking_log_weights",
]
