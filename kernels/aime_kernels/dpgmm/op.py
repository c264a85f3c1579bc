"""The public functions of the mixture that have kernels."""

from torch import Tensor

from aime_kernels.dispatch import float_obstacle, implementation, kernels_possible, size_class
from aime_kernels.dpgmm import density, divergence, operators, sticks

_MOST_TILE, _MOST_STICKS = 2048, 31


def kumaraswamy_log_weights(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> Tensor:
    """Log-weights of K = J + 1 components from J sticks: log pi_k = log v_k + sum_{j<k} log(1 - v_j), v_J = 1.

    log_a, log_b: logarithms of the sticks' Kumaraswamy parameters, within about [-5, 5]; uniform: their draws in
    [0, 1], not differentiated by the kernel; all [..., J] of one dtype. Returns [..., J + 1]; the weights sum to 1 to
    rounding. Equals `stick_breaking_log_weights(*kumaraswamy_log_sticks(log_a, log_b, uniform))`.

    Why an op: some 40 elementwise launches on a few kilobytes, three times that with the backward pass; the kernels
    are two.
    """
    if not kernels_possible(log_a.device):
        return _log_weights(log_a, log_b, uniform)
    reason = float_obstacle(log_a, log_b, uniform)
    if reason is None and (log_a.shape != log_b.shape or log_a.shape != uniform.shape or log_a.dim() < 1):
        reason = f"shapes {tuple(log_a.shape)}, {tuple(log_b.shape)} and {tuple(uniform.shape)} differ"
    elif reason is None and not 1 <= log_a.shape[-1] <= _MOST_STICKS:
        reason = f"{log_a.shape[-1]} sticks, built for 1 to {_MOST_STICKS}"
    elif reason is None and uniform.requires_grad:
        reason = "a gradient of the uniform draws is asked for"
    classes = (size_class(log_a.numel()), log_a.shape[-1] if log_a.dim() else 0)
    inputs = (log_a, log_b, uniform)
    name = "kumaraswamy_log_weights"
    return implementation(name, _log_weights, _weights_of_kernel, inputs, reason, classes, 2)(*inputs)


def expected_kumaraswamy_beta_kl(
    log_a: Tensor, log_b: Tensor, expected_alpha: Tensor, expected_log_alpha: Tensor
) -> Tensor:
    """E_alpha KL(Kumaraswamy(a, b) || Beta(1, alpha)), elementwise over the broadcast shape, in nats.

    alpha enters only through its two moments because log B(1, alpha) = -log alpha; for alpha ~ Gamma(c, r) they are
    E[alpha] = c / r and E[log alpha] = digamma(c) - log r. The result is accurate to 1e-5 relative in M for a, b in
    [0.02, 100] (`divergence.py`); value and gradient stay finite for logarithms in [-20, 20].

    The kernel takes log_a, log_b [..., J] and moments [..., 1], the model's shapes; others go to the reference.
    Why an op: 24 nodes a stick written as tensor algebra are a tensor 24 times the result, some 60 launches long.
    """
    plain = divergence.expected_kumaraswamy_beta_kl
    if not kernels_possible(log_a.device):
        return plain(log_a, log_b, expected_alpha, expected_log_alpha)
    inputs = (log_a, log_b, expected_alpha, expected_log_alpha)
    reason, moments = float_obstacle(*inputs), (*log_a.shape[:-1], 1)
    if reason is None and (log_a.shape != log_b.shape or log_a.dim() < 1):
        reason = f"shapes {tuple(log_a.shape)} and {tuple(log_b.shape)} differ"
    elif reason is None and not 1 <= log_a.shape[-1] <= _MOST_STICKS:
        reason = f"{log_a.shape[-1]} sticks, built for 1 to {_MOST_STICKS}"
    elif reason is None and not expected_alpha.shape == expected_log_alpha.shape == moments:
        reason = f"moments must be {moments}"
    classes = (size_class(log_a.numel()), log_a.shape[-1] if log_a.dim() else 0)
    return implementation("expected_kumaraswamy_beta_kl", plain, _kl_of_kernel, inputs, reason, classes, 4)(*inputs)


def mixture_log_density(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_k pi_k N(z; mean_k, var_k) and the log-responsibilities of the components.

    z: [N, S, D], S samples per row; log_pi: [N, K], normalised; means, log_vars: [N, K, D]. Returns log_prob [N, S] in
    nats and log_responsibilities [N, S, K], whose exponentials sum to 1 over K. Differentiable once.

    The differences z - mean_k are formed and squared; the expanded form (z^2 - 2 z mean + mean^2) / var is one matrix
    product but in float32 loses up to 0.05 nats at |z| = 5, log_var = -6, where its terms are 1e4 times their sum.

    Why an op: [N, S, K, D] is never kept; on CUDA it is never made, and some 60 launches become two.
    """
    plain = density.mixture_log_density
    if not kernels_possible(z.device):
        return plain(z, log_pi, means, log_vars)
    inputs = (z, log_pi, means, log_vars)
    reason = float_obstacle(*inputs) or _mixture_obstacle(*inputs)
    classes = tuple(map(size_class, z.shape[:2])) + tuple(means.shape[1:])
    return implementation("mixture_log_density", plain, operators.mixture, inputs, reason, classes, 4)(*inputs)


def _log_weights(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> Tensor:
    return sticks.stick_breaking_log_weights(*sticks.kumaraswamy_log_sticks(log_a, log_b, uniform))


def _mixture_obstacle(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> str | None:
    if z.dim() != 3 or means.dim() != 3 or means.shape != log_vars.shape:
        return f"shapes {tuple(z.shape)}, {tuple(means.shape)} and {tuple(log_vars.shape)} do not fit"
    rows, components, dim = means.shape
    if z.shape[0] != rows or z.shape[2] != dim or log_pi.shape != (rows, components):
        return f"shapes {tuple(z.shape)}, {tuple(log_pi.shape)} and {tuple(means.shape)} do not fit"
    tile = (1 << max(components - 1, 0).bit_length()) * (1 << max(dim - 1, 0).bit_length())
    if not components or not dim or tile > _MOST_TILE:
        return f"{components} components of {dim} dimensions, built for a padded tile of 1 to {_MOST_TILE}"
    return None


def _weights_of_kernel(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> Tensor:
    flat = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (log_a, log_b, uniform))
    return operators.stick_weights(*flat).view(*log_a.shape[:-1], log_a.shape[-1] + 1)


def _kl_of_kernel(log_a: Tensor, log_b: Tensor, mean: Tensor, mean_log: Tensor) -> Tensor:
    flat = (tensor.reshape(-1, log_a.shape[-1]) for tensor in (log_a, log_b))
    return operators.stick_kl(*flat, mean.reshape(-1), mean_log.reshape(-1)).view(log_a.shape)
