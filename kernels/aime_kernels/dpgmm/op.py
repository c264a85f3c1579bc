"""The public functions of the mixture that have kernels, and the operators around these."""

from torch import Tensor

from aime_kernels.dispatch import call, float_obstacle, padded_size, shapes
from aime_kernels.dpgmm import density, divergence, sticks
from aime_kernels.torch_operator import differentiable_operator, empty_like

_MAX_TILE, _MAX_STICKS = 2048, 31


def kumaraswamy_log_weights(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> Tensor:
    """Log-weights of K = J + 1 components from J sticks: log pi_k = log v_k + sum_{j<k} log(1 - v_j), v_J = 1.

    log_a, log_b: logarithms of the sticks' Kumaraswamy parameters, within about [-5, 5]; uniform: draws in [0, 1],
    which the kernel does not differentiate; all [..., J] of one dtype. Returns [..., J + 1].
    """
    inputs = (log_a, log_b, uniform)
    return call("kumaraswamy_log_weights", log_a.device, _log_weights, _weights_by_kernel, _weights_obstacle, *inputs)


def expected_kumaraswamy_beta_kl(
    log_a: Tensor, log_b: Tensor, expected_alpha: Tensor, expected_log_alpha: Tensor
) -> Tensor:
    """E_alpha KL(Kumaraswamy(a, b) || Beta(1, alpha)), elementwise over the broadcast shape, in nats.

    Only two moments of alpha are needed, because log B(1, alpha) = -log alpha. For alpha ~ Gamma(c, r) they are
    E[alpha] = c / r and E[log alpha] = digamma(c) - log r. The result is accurate to 1e-5 relative in M for a, b in
    [0.02, 100] (`divergence.py`); value and gradient stay finite for logarithms in [-20, 20].
    The kernel takes log_a, log_b [..., J] and moments [..., 1]; other shapes take the reference.
    """
    plain = divergence.expected_kumaraswamy_beta_kl
    inputs = (log_a, log_b, expected_alpha, expected_log_alpha)
    return call("expected_kumaraswamy_beta_kl", log_a.device, plain, _kl_by_kernel, _kl_obstacle, *inputs)


def mixture_log_density(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_k pi_k N(z; mean_k, var_k) and the log-responsibilities of the components.

    z: [N, S, D], S samples per row; log_pi: [N, K], normalised; means, log_vars: [N, K, D]. Returns log_prob [N, S] in
    nats and log_responsibilities [N, S, K], whose exponentials sum to 1 over K. Differentiable once.

    The differences z - mean_k are formed and squared. The expanded form (z^2 - 2 z mean + mean^2) / var would be one
    matrix product, but in float32 it loses up to 0.05 nats at |z| = 5, log_var = -6.
    """
    inputs, plain = (z, log_pi, means, log_vars), density.mixture_log_density
    return call("mixture_log_density", z.device, plain, mixture, _mixture_obstacle, *inputs)


def _log_weights(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> Tensor:
    return sticks.stick_breaking_log_weights(*sticks.kumaraswamy_log_sticks(log_a, log_b, uniform))


def _weights_by_kernel(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> Tensor:
    flat = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (log_a, log_b, uniform))
    return stick_weights(*flat).view(*log_a.shape[:-1], log_a.shape[-1] + 1)


def _kl_by_kernel(log_a: Tensor, log_b: Tensor, mean: Tensor, mean_log: Tensor) -> Tensor:
    flat = (tensor.reshape(-1, log_a.shape[-1]) for tensor in (log_a, log_b))
    return stick_kl(*flat, mean.reshape(-1), mean_log.reshape(-1)).view(log_a.shape)


def _sticks_obstacle(*tensors: Tensor) -> str | None:
    """tensors: must have one shape [..., J]."""
    shape = tensors[0].shape
    if any(tensor.shape != shape for tensor in tensors) or not shape:
        return f"shapes {shapes(*tensors)} differ"
    return None if 1 <= shape[-1] <= _MAX_STICKS else f"{shape[-1]} sticks, built for 1 to {_MAX_STICKS}"


def _weights_obstacle(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> str | None:
    gradient = "the uniform draws need a gradient" if uniform.requires_grad else None
    return float_obstacle(log_a, log_b, uniform) or _sticks_obstacle(log_a, log_b, uniform) or gradient


def _kl_obstacle(log_a: Tensor, log_b: Tensor, mean: Tensor, mean_log: Tensor) -> str | None:
    moments = (*log_a.shape[:-1], 1)
    wrong = None if mean.shape == mean_log.shape == moments else f"moments must be {moments}"
    return float_obstacle(log_a, log_b, mean, mean_log) or _sticks_obstacle(log_a, log_b) or wrong


def _mixture_obstacle(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> str | None:
    if (reason := float_obstacle(z, log_pi, means, log_vars)) is not None:
        return reason
    fits = z.dim() == means.dim() == 3 and means.shape == log_vars.shape
    if not fits or z.shape[::2] != means.shape[::2] or log_pi.shape != means.shape[:2]:
        return f"shapes {shapes(z, log_pi, means, log_vars)} do not fit"
    _, components, dim = means.shape
    if not components or not dim or padded_size(components, dim) > _MAX_TILE:
        return f"{components} components of {dim} dimensions, built for a padded tile of 1 to {_MAX_TILE}"
    return None


_STICKS, _DENSITY = "aime_kernels.dpgmm.triton_sticks", "aime_kernels.dpgmm.triton_density"

stick_weights, stick_weights_backward = differentiable_operator(
    "stick_weights",
    _STICKS,
    "log_a log_b uniform -> log_pi",
    lambda log_a, *_: log_a.new_empty(log_a.shape[0], log_a.shape[1] + 1),
    "log_a log_b uniform -> log_a log_b",
    lambda log_a, log_b, *_: empty_like(log_a, log_b),
)
"""[rows, J] three times -> log pi [rows, J + 1]."""
# E log alpha is only added: its gradient needs no value of it.
stick_kl, stick_kl_backward = differentiable_operator(
    "stick_kl",
    _STICKS,
    "log_a log_b mean mean_log -> kl",
    lambda log_a, *_: empty_like(log_a)[0],
    "log_a log_b mean -> log_a log_b mean mean_log",
    lambda log_a, log_b, mean, _: empty_like(log_a, log_b, mean, mean),
)
"""log a, log b [rows, J] and the moments E alpha, E log alpha [rows] -> KL [rows, J]."""
mixture, mixture_backward = differentiable_operator(
    "mixture",
    _DENSITY,
    "z log_pi means log_vars -> log_prob log_r",
    lambda z, log_pi, *_: (z.new_empty(z.shape[:2]), z.new_empty(*z.shape[:2], log_pi.shape[1])),
    "z means log_vars log_r -> z log_pi means log_vars",
    lambda z, means, *_: (*empty_like(z), z.new_empty(means.shape[:2]), *empty_like(means, means)),
)
"""[N, S, D], [N, K], [N, K, D] twice -> log-density [N, S] and log-responsibilities [N, S, K]."""
