"""Numerical operators: public functions over plain PyTorch references, Triton kernels and C++ (docs/kernels.md)."""

from aime_kernels.codebook.op import distance_to_codes, nearest_codes
from aime_kernels.dpgmm.density import gaussian_log_density
from aime_kernels.dpgmm.divergence import gamma_kl
from aime_kernels.dpgmm.op import expected_kumaraswamy_beta_kl, kumaraswamy_log_weights, mixture_log_density
from aime_kernels.dpgmm.sticks import kumaraswamy_log_sticks, stick_breaking_log_weights
from aime_kernels.frames.op import gather_windows, normalise_frames
from aime_kernels.logistic_mixture.op import logistic_mixture_loss
from aime_kernels.logistic_mixture.parameters import logistic_mixture_mean
from aime_kernels.rgb.op import rgb_combine, rgb_gram
from aime_kernels.slot_attention.op import slot_attention

__all__ = [
    "distance_to_codes",
    "expected_kumaraswamy_beta_kl",
    "gamma_kl",
    "gather_windows",
    "gaussian_log_density",
    "kumaraswamy_log_sticks",
    "kumaraswamy_log_weights",
    "logistic_mixture_loss",
    "logistic_mixture_mean",
    "mixture_log_density",
    "nearest_codes",
    "normalise_frames",
    "rgb_combine",
    "rgb_gram",
    "slot_attention",
    "stick_breaking_log_weights",
]
