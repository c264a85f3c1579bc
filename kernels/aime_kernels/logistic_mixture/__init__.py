"""Mixture of discretised logistics over 8-bit RGB pixels: log-probability, mean and samples."""

from aime_kernels.logistic_mixture.op import logistic_mixture_log_prob, logistic_mixture_loss
from aime_kernels.logistic_mixture.parameters import logistic_mixture_mean, logistic_mixture_sample

__all__ = ["logistic_mixture_log_prob", "logistic_mixture_loss", "logistic_mixture_mean", "logistic_mixture_sample"]
