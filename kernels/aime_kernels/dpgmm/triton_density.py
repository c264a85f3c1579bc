"""Mixture log-density and responsibilities, forward and backward; one program handles the S samples of one row.

The K x D means and log-variances, and in the backward pass their gradients, stay in registers during the loop over
samples.
"""

import triton
import triton.language as tl
from torch import Tensor

from aime_kernels.launch import Launch

# The backward pass spills a few registers with fused multiply-adds on sm_80, and without them on sm_86.
LAUNCH = Launch(1, 4, 86)
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
):
    """log sum_k pi_k N(z; mean_k, var_k), and the log-responsibility of each component."""
    row = tl.program_id(0).to(tl.int64)
    k, d = tl.arange(0, triton.next_power_of_2(K)), tl.arange(0, triton.next_power_of_2(D))
    tile = row * (K * D) + k[:, None] * D + d[None, :]
    inside = (k[:, None] < K) & (d[None, :] < D)
    mean = tl.load(means + tile, mask=inside, other=0.0)
    log_var = tl.load(log_vars + tile, mask=inside, other=0.0)
    inverse = tl.exp(-0.5 * log_var)
    # Padded components have weight zero.
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
):
    """With g the gradient of the joint log-density, pull = g (z - mean) / var is d mean, and -pull is d z."""
    row = tl.program_id(0).to(tl.int64)
    k, d = tl.arange(0, triton.next_power_of_2(K)), tl.arange(0, triton.next_power_of_2(D))
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


def launch(kernel: triton.JITFunction, tensors: list[Tensor]) -> None:
    """tensors: the kernel's arguments, z first; means are its first [N, K, D]."""
    z, means = tensors[0], next(tensor for tensor in tensors[1:] if tensor.dim() == 3)
    rows, components, dim = means.shape
    given = (tensor.contiguous() for tensor in tensors)
    LAUNCH.start(kernel, (rows,), *given, z.shape[1], K=components, D=dim)
