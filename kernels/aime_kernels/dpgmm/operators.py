"""Torch operators around the mixture's kernels, forward and backward: contiguous copies where needed, then a launch."""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("aime_kernels::stick_weights", mutates_args=())
def stick_weights(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> Tensor:
    """[rows, J] three times -> log pi [rows, J + 1]."""
    from aime_kernels.dpgmm.triton_sticks import stick_weights_triton

    return stick_weights_triton(log_a.contiguous(), log_b.contiguous(), uniform.contiguous())


@stick_weights.register_fake
def _(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> Tensor:
    return log_a.new_empty(log_a.shape[0], log_a.shape[1] + 1)


@torch.library.custom_op("aime_kernels::stick_weights_backward", mutates_args=())
def stick_weights_backward(log_a: Tensor, log_b: Tensor, uniform: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of log a and log b."""
    from aime_kernels.dpgmm.triton_sticks import stick_weights_backward_triton

    return stick_weights_backward_triton(*(x.contiguous() for x in (log_a, log_b, uniform, grad)))


@stick_weights_backward.register_fake
def _(log_a: Tensor, log_b: Tensor, uniform: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return log_a.new_empty(log_a.shape), log_a.new_empty(log_a.shape)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


stick_weights.register_autograd(
    lambda ctx, grad: (*stick_weights_backward(*ctx.saved_tensors, grad), None), setup_context=_save_inputs
)


@torch.library.custom_op("aime_kernels::stick_kl", mutates_args=())
def stick_kl(log_a: Tensor, log_b: Tensor, mean: Tensor, mean_log: Tensor) -> Tensor:
    """log a, log b [rows, J] and two moments [rows] -> [rows, J]."""
    from aime_kernels.dpgmm.triton_sticks import stick_kl_triton

    return stick_kl_triton(*(x.contiguous() for x in (log_a, log_b, mean, mean_log)))


@stick_kl.register_fake
def _(log_a: Tensor, log_b: Tensor, mean: Tensor, mean_log: Tensor) -> Tensor:
    return log_a.new_empty(log_a.shape)


@torch.library.custom_op("aime_kernels::stick_kl_backward", mutates_args=())
def stick_kl_backward(
    log_a: Tensor, log_b: Tensor, mean: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all four; mean_log enters as a constant -1."""
    from aime_kernels.dpgmm.triton_sticks import stick_kl_backward_triton

    return stick_kl_backward_triton(*(x.contiguous() for x in (log_a, log_b, mean, grad)))


@stick_kl_backward.register_fake
def _(log_a: Tensor, log_b: Tensor, mean: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sticks, moments = log_a.shape, mean.shape
    return log_a.new_empty(sticks), log_a.new_empty(sticks), mean.new_empty(moments), mean.new_empty(moments)


stick_kl.register_autograd(lambda ctx, grad: stick_kl_backward(*ctx.saved_tensors, grad), setup_context=_save_inputs)


@torch.library.custom_op("aime_kernels::mixture", mutates_args=())
def mixture(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> tuple[Tensor, Tensor]:
    """[N, S, D], [N, K], [N, K, D] twice -> log-density [N, S] and log-responsibilities [N, S, K]."""
    from aime_kernels.dpgmm.triton_density import mixture_triton

    return mixture_triton(*(x.contiguous() for x in (z, log_pi, means, log_vars)))


@mixture.register_fake
def _(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape[:2]), z.new_empty(*z.shape[:2], means.shape[1])


@torch.library.custom_op("aime_kernels::mixture_backward", mutates_args=())
def mixture_backward(
    z: Tensor, means: Tensor, log_vars: Tensor, log_r: Tensor, grad_log_prob: Tensor, grad_log_r: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, log pi, means and log-variances."""
    from aime_kernels.dpgmm.triton_density import mixture_backward_triton

    return mixture_backward_triton(*(x.contiguous() for x in (z, means, log_vars, log_r, grad_log_prob, grad_log_r)))


@mixture_backward.register_fake
def _(
    z: Tensor, means: Tensor, log_vars: Tensor, log_r: Tensor, grad_log_prob: Tensor, grad_log_r: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return z.new_empty(z.shape), z.new_empty(means.shape[:2]), z.new_empty(means.shape), z.new_empty(means.shape)


def _save_mixture(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    z, _, means, log_vars = inputs
    ctx.save_for_backward(z, means, log_vars, output[1])


mixture.register_autograd(
    lambda ctx, grad_log_prob, grad_log_r: mixture_backward(*ctx.saved_tensors, grad_log_prob, grad_log_r),
    setup_context=_save_mixture,
)
