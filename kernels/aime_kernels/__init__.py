"""Numerical operators of AIME: public functions over plain PyTorch references and Triton kernels (docs/kernels.md)."""

from aime_kernels.dpgmm import (
    expected_kumaraswamy_beta_kl,
    gamma_kl,
    gaussian_log_density,
    kumaraswamy_log_sticks,
    kumaraswamy_log_weights,
    mixture_log_density,
    stick_breaking_log_weights,
)
from aime_kernels.frames import frames_to_levels, gather_windows, normalise_frames
from aime_kernels.logistic_mixture import (
    logistic_mixture_log_prob,
    logistic_mixture_loss,
    logistic_mixture_mean,
    logistic_mixture_sample,
)
from aime_kernels.rgb_combine import rgb_combine
from aime_kernels.rgb_gram import rgb_gram
from aime_kernels.slot_attention import slot_attention

__all__ = [
    "expected_kumaraswamy_beta_kl",
    "frames_to_levels",
    "gamma_kl",
    "gather_windows",
    "gaussian_log_density",
    "kumaraswamy_log_sticks",
    "kumaraswamy_log_weights",
    "logistic_mixture_log_prob",
    "logistic_mixture_loss",
    "logistic_mixture_mean",
    "logistic_mixture_sample",
    "mixture_log_density",
    "normalise_frames",
    "rgb_combine",
    "rgb_gram",
    "slot_attention",
    "stick_breaking_log_weights",
]
