"""Log-densities of diagonal Gaussians and of their mixtures."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LOG_2PI = math.log(2.0 * math.pi)


def gaussian_log_density(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, diag exp(log_var)) in nats, summed over the last dimension: [..., D] three times -> [...]."""
    quadratic = (z - mean).square() * torch.exp(-log_var)
    return -0.5 * ((quadratic + log_var).sum(-1) + z.shape[-1] * _LOG_2PI)


def mixture_log_density(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> tuple[Tensor, Tensor]:
    """`aime_kernels.mixture_log_density`; tensors [N, S, K, D] exist only within the forward and the backward pass."""
    joint = log_pi[:, None, :] + _ComponentLogDensity.apply(z, means, log_vars)
    log_prob = joint.logsumexp(-1)
    return log_prob, joint - log_prob[..., None]


class _ComponentLogDensity(torch.autograd.Function):
    """log N(z_s; mean_k, var_k): [N, S, D], [N, K, D], [N, K, D] -> [N, S, K]; backward recomputes the differences."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, means: Tensor, log_vars: Tensor) -> Tensor:
        ctx.save_for_backward(z, means, log_vars)
        scaled = (z[:, :, None] - means[:, None]).mul_(torch.exp(-0.5 * log_vars)[:, None])
        normaliser = log_vars.sum(-1) + z.shape[-1] * _LOG_2PI
        return scaled.square_().sum(-1).add_(normaliser[:, None]).mul_(-0.5)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, means, log_vars = ctx.saved_tensors
        difference = z[:, :, None] - means[:, None]
        pull = difference * torch.exp(-log_vars)[:, None] * grad[..., None]
        grad_log_vars = 0.5 * ((pull * difference).sum(1) - grad.sum(1)[..., None])
        return -pull.sum(2), pull.sum(1), grad_log_vars
