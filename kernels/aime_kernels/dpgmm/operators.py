"""Torch operators around the mixture's kernels, forward and backward."""

from torch import Tensor

from aime_kernels.torch_operator import differentiate, empty_like, kernel_operator

_STICKS, _DENSITY = "aime_kernels.dpgmm.triton_sticks", "aime_kernels.dpgmm.triton_density"


def _mixture_outputs(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> tuple[Tensor, ...]:
    return z.new_empty(z.shape[:2]), z.new_empty(*z.shape[:2], means.shape[1])


def _mixture_gradients(z: Tensor, means: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return z.new_empty(z.shape), z.new_empty(means.shape[:2]), *empty_like(means, means)


stick_weights = kernel_operator(
    "stick_weights(Tensor log_a, Tensor log_b, Tensor uniform) -> Tensor",
    lambda log_a, *_: log_a.new_empty(log_a.shape[0], log_a.shape[1] + 1),
    _STICKS,
    "stick_weights_fwd_kernel",
)
"""[rows, J] three times -> log pi [rows, J + 1]."""
stick_weights_backward = kernel_operator(
    "stick_weights_backward(Tensor log_a, Tensor log_b, Tensor uniform, Tensor grad) -> (Tensor, Tensor)",
    lambda log_a, log_b, *_: empty_like(log_a, log_b),
    _STICKS,
    "stick_weights_bwd_kernel",
)
differentiate(stick_weights, stick_weights_backward, lambda inputs, output: inputs)

stick_kl = kernel_operator(
    "stick_kl(Tensor log_a, Tensor log_b, Tensor mean, Tensor mean_log) -> Tensor",
    lambda log_a, *_: empty_like(log_a)[0],
    _STICKS,
    "stick_kl_fwd_kernel",
)
"""log a, log b [rows, J] and the moments E alpha, E log alpha [rows] -> KL [rows, J]."""
stick_kl_backward = kernel_operator(
    "stick_kl_backward(Tensor log_a, Tensor log_b, Tensor mean, Tensor grad) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda log_a, log_b, mean, _: empty_like(log_a, log_b, mean, mean),
    _STICKS,
    "stick_kl_bwd_kernel",
)
# E log alpha is only added: its gradient needs no value of it.
differentiate(stick_kl, stick_kl_backward, lambda inputs, output: inputs[:3])

mixture = kernel_operator(
    "mixture(Tensor z, Tensor log_pi, Tensor means, Tensor log_vars) -> (Tensor, Tensor)",
    _mixture_outputs,
    _DENSITY,
    "mixture_fwd_kernel",
)
"""[N, S, D], [N, K], [N, K, D] twice -> log-density [N, S] and log-responsibilities [N, S, K]."""
mixture_backward = kernel_operator(
    "mixture_backward(Tensor z, Tensor means, Tensor log_vars, Tensor log_r, Tensor grad_log_prob, Tensor grad_log_r)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _mixture_gradients,
    _DENSITY,
    "mixture_bwd_kernel",
)
differentiate(mixture, mixture_backward, lambda inputs, output: (inputs[0], *inputs[2:], output[1]))
