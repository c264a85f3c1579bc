"""The public functions of the mixture that are differentiated, and which form of them runs."""

from collections.abc import Callable

import torch
from torch import Tensor

from aime_kernels.logistic_mixture.fused import fused_terms
from aime_kernels.logistic_mixture.native import native_obstacle, native_terms
from aime_kernels.logistic_mixture.parameters import components
from aime_kernels.logistic_mixture.reference import reference_terms


def logistic_mixture_log_prob(frames: Tensor, parameters: Tensor, centre: Tensor | None = None) -> Tensor:
    """Log-probability of whole frames, in nats: [N, 3, H, W] and parameters [N, 10 M, H, W] -> [N].

    frames: on the 256 levels of [-1, 1], not differentiated; parameters: float32 or float64, differentiable once;
    centre: [N, 3, H, W], what the locations are offsets from, differentiable once, zero where not given.
    Raises ValueError when the shapes do not fit.
    """
    return logistic_mixture_terms(frames, parameters, centre)[0]


def logistic_mixture_terms(frames: Tensor, parameters: Tensor, centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`logistic_mixture_log_prob` [N] and `logistic_mixture_mean` [N, 3, H, W]; differentiable once.

    For both in one loss: parameters then get one gradient, where adding that of each up would move them thrice more.

    Why an op: some 130 elementwise operators on the largest tensor of a step are one pass over it. On a CPU with AVX2
    and a C++ compiler that is `native.cpp`, for float32; else `fused.py` inside a caller that is being compiled, and
    `reference.py`.
    """
    blocks = components(parameters)
    n, _, height, width = parameters.shape
    if frames.shape != (n, 3, height, width):
        raise ValueError(f"frames {tuple(frames.shape)} do not fit mixture parameters {tuple(parameters.shape)}")
    x = frames.to(parameters.dtype).flatten(2)
    around = torch.zeros_like(x) if centre is None else centre.to(x.dtype).expand_as(frames).flatten(2)
    log_prob, mean = _form(parameters)(x, around, blocks)
    return log_prob, mean.unflatten(2, (height, width))


def _form(parameters: Tensor) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What takes x and centre [N, 3, P] and blocks [N, M, 10, P] to log p [N] and mean [N, 3, P]."""
    if native_obstacle(parameters) is None:
        return native_terms
    return fused_terms if torch.compiler.is_compiling() else reference_terms
