"""Mixture log-density and responsibilities, forward and backward: one row (its S samples) a program.

The K x D means and log-variances are read once and stay in registers while the samples pass by; the backward pass adds
their gradients up in registers, so neither pass makes anything of size [N, S, K, D].
"""

import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.launch import Launch, launch_for, on_device_of

# ptxas settles the backward pass at 64 registers and spills a few on sm_80 with fused multiply-adds, on sm_86 without.
LAUNCH = {80: Launch(1, 4, False), 86: Launch(1, 4, True), 90: Launch(1, 4, True)}
MOST_TILE = 2048
"""Components times dimensions, each rounded up to a power of two, that the registers are planned for."""
LOG_2PI = tl.constexpr(1.8378770664093453)


@triton.jit
def mixture_fwd_kernel(
    z,  # [N, S, D]
    log_pi,  # [N, K]
    means,  # [N, K, D]
    log_vars,  # [N, K, D]
    log_prob,  # [N, S]
    log_responsibilities,  # [N, S, K]
    samples,
    K: tl.constexpr,
    D: tl.constexpr,
    K_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """log sum_k pi_k N(z; mean_k, var_k), and each component's share of it."""
    row = tl.program_id(0).to(tl.int64)
    k, d = tl.arange(0, K_PAD), tl.arange(0, D_PAD)
    tile = row * (K * D) + k[:, None] * D + d[None, :]
    inside = (k[:, None] < K) & (d[None, :] < D)
    mean = tl.load(means + tile, mask=inside, other=0.0)
    log_var = tl.load(log_vars + tile, mask=inside, other=0.0)
    inverse = tl.exp(-0.5 * log_var)
    # Components that are padding have weight zero.
    base = tl.load(log_pi + row * K + k, mask=k < K, other=float("-inf")) - 0.5 * (tl.sum(log_var, 1) + D * LOG_2PI)
    for s in range(samples):
        at = row * samples + s
        x = tl.load(z + at * D + d, mask=d < D, other=0.0)
        scaled = (x[None, :] - mean) * inverse
        joint = base - 0.5 * tl.sum(scaled * scaled, 1)
        top = tl.max(joint, 0)
        above = tl.log(tl.sum(tl.exp(joint - top), 0))
        tl.store(log_prob + at, top + above)
        tl.store(log_responsibilities + at * K + k, (joint - top) - above, mask=k < K)


@triton.jit
def mixture_bwd_kernel(
    z,  # [N, S, D]
    means,  # [N, K, D]
    log_vars,  # [N, K, D]
    log_responsibilities,  # [N, S, K]
    grad_log_prob,  # [N, S]
    grad_log_responsibilities,  # [N, S, K]
    grad_z,  # [N, S, D]
    grad_log_pi,  # [N, K]
    grad_means,  # [N, K, D]
    grad_log_vars,  # [N, K, D]
    samples,
    K: tl.constexpr,
    D: tl.constexpr,
    K_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """With g the gradient of the joint log-density: pull = g (z - mean) / var moves z one way, the mean the other."""
    row = tl.program_id(0).to(tl.int64)
    k, d = tl.arange(0, K_PAD), tl.arange(0, D_PAD)
    tile = row * (K * D) + k[:, None] * D + d[None, :]
    inside = (k[:, None] < K) & (d[None, :] < D)
    mean = tl.load(means + tile, mask=inside, other=0.0)
    precision = tl.exp(-tl.load(log_vars + tile, mask=inside, other=0.0))
    by_mean, by_log_var = tl.zeros_like(mean), tl.zeros_like(mean)
    by_weight = tl.sum(by_mean, 1)
    for s in range(samples):
        at = row * samples + s
        share = tl.exp(tl.load(log_responsibilities + at * K + k, mask=k < K, other=float("-inf")))
        direct = tl.load(grad_log_responsibilities + at * K + k, mask=k < K, other=0.0)
        g = direct + share * (tl.load(grad_log_prob + at) - tl.sum(direct, 0))
        difference = tl.load(z + at * D + d, mask=d < D, other=0.0)[None, :] - mean
        pull = difference * precision * g[:, None]
        by_weight += g
        by_mean += pull
        by_log_var += pull * difference
        tl.store(grad_z + at * D + d, -tl.sum(pull, 0), mask=d < D)
    tl.store(grad_log_pi + row * K + k, by_weight, mask=k < K)
    tl.store(grad_means + tile, by_mean, mask=inside)
    tl.store(grad_log_vars + tile, 0.5 * (by_log_var - by_weight[:, None]), mask=inside)


def mixture_triton(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous [N, S, D], [N, K], [N, K, D], [N, K, D] -> [N, S], [N, S, K]."""
    out = z.new_empty(z.shape[:2]), z.new_empty(*z.shape[:2], means.shape[1])
    _launch(mixture_fwd_kernel, [z, log_pi, means, log_vars, *out], means, z.shape[1])
    return out


def mixture_backward_triton(
    z: Tensor, means: Tensor, log_vars: Tensor, log_responsibilities: Tensor, grad_log_prob: Tensor, grad_log_r: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, log pi, means and log-variances, in their shapes."""
    out = z.new_empty(z.shape), z.new_empty(means.shape[:2]), z.new_empty(means.shape), z.new_empty(means.shape)
    tensors = [z, means, log_vars, log_responsibilities, grad_log_prob, grad_log_r, *out]
    _launch(mixture_bwd_kernel, tensors, means, z.shape[1])
    return out


def padded(components: int, dim: int) -> tuple[int, int]:
    """The tile [K_PAD, D_PAD]."""
    return triton.next_power_of_2(components), triton.next_power_of_2(dim)


def _launch(kernel: triton.JITFunction, tensors: list[Tensor], means: Tensor, samples: int) -> None:
    rows, components, dim = means.shape
    k_pad, d_pad = padded(components, dim)
    if rows:
        with on_device_of(means):
            kernel[(rows,)](
                *tensors,
                samples,
                K=components,
                D=dim,
                K_PAD=k_pad,
                D_PAD=d_pad,
                **launch_for(LAUNCH, means.device).options(),
            )
