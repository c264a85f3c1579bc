"""Each operator as one writes it in plain torch: the peers of `aime_kernels`, with the arguments of its functions.

They are not as accurate where the operators take care: sticks and weights near 0 and 1, sums of millions of squares,
equally near codes, series that converge slowly.
"""

import torch
from torch import Tensor
from torch.distributions import Normal

from aime_kernels.logistic_mixture.reference import reference_gradients


def mixture_log_density(z: Tensor, log_pi: Tensor, means: Tensor, log_vars: Tensor) -> tuple[Tensor, Tensor]:
    """By broadcasting to [N, S, K, D]."""
    components = Normal(means[:, None], (0.5 * log_vars)[:, None].exp(), validate_args=False)
    joint = log_pi[:, None] + components.log_prob(z[:, :, None]).sum(-1)
    log_prob = joint.logsumexp(-1)
    return log_prob, joint - log_prob[..., None]


def slot_attention(slots: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Assignments normalised with an epsilon, as it was published."""
    assignments = (slots @ keys.mT * slots.shape[-1] ** -0.5).softmax(1)
    maps = assignments / (assignments.sum(2, keepdim=True) + 1e-8)
    return maps @ values, assignments, maps


def kumaraswamy_log_weights(log_a: Tensor, log_b: Tensor, uniform: Tensor) -> Tensor:
    """The inverse CDF and products of sticks."""
    u = uniform.clamp(1e-6, 1 - 1e-6)
    v = (1 - (1 - u) ** (-log_b).exp()) ** (-log_a).exp()
    rest = torch.cumprod(torch.cat([torch.ones_like(v[..., :1]), 1 - v], -1), -1)
    return (torch.cat([v, torch.ones_like(v[..., :1])], -1) * rest).log()


def expected_kumaraswamy_beta_kl(log_a: Tensor, log_b: Tensor, mean: Tensor, mean_log: Tensor) -> Tensor:
    """With ten terms of the usual series (Nalisnick and Smyth 2017)."""
    a, b = log_a.exp(), log_b.exp()
    m = torch.arange(1, 11, dtype=a.dtype, device=a.device)
    log_beta = (
        torch.lgamma(m / a[..., None]) + torch.lgamma(b)[..., None] - torch.lgamma(m / a[..., None] + b[..., None])
    )
    series = b * (log_beta.exp() / (m + (a * b)[..., None])).sum(-1)
    entropy = log_a + log_b - (1 - 1 / a) * (0.5772156649015329 + torch.digamma(b) + 1 / b) - (1 - 1 / b)
    return entropy - mean_log + (mean - 1) * series


def nearest_codes(encodings: Tensor, codes: Tensor) -> Tensor:
    """The first of the smallest distances, as rounding leaves them."""
    return torch.cdist(encodings, codes).argmin(1)


def normalise_frames(frames: Tensor) -> Tensor:
    """Converted, then permuted."""
    return (frames.float() / 127.5 - 1).permute(0, 1, 4, 2, 3).contiguous()


def rgb_gram(vectors: list[list[Tensor]]) -> Tensor:
    """A product of the joined gradients in float32."""
    matrix = torch.stack([torch.cat([tensor.flatten() for tensor in vector]) for vector in vectors])
    return matrix @ matrix.mT


def rgb_combine(
    gradients: list[list[Tensor]], direction: list[Tensor], update: list[Tensor], coefficients: Tensor, finite: Tensor
) -> None:
    """A sum of scaled tensors, position by position."""
    of_update, of_direction = coefficients.to(direction[0].dtype)
    for *terms, old, target in zip(*gradients, direction, update, strict=True):
        new = sum((c * g for c, g in zip(of_direction, terms, strict=False)), of_direction[-1] * old)
        total = sum((c * g for c, g in zip(of_update, terms, strict=False)), of_update[-1] * new)
        old.copy_(torch.where(finite, new, old))
        target.copy_(torch.where(finite, total, torch.zeros_like(total)))


PLAIN = {
    "expected_kumaraswamy_beta_kl": expected_kumaraswamy_beta_kl,
    "kumaraswamy_log_weights": kumaraswamy_log_weights,
    "logistic_mixture": reference_gradients,
    "mixture_log_density": mixture_log_density,
    "nearest_codes": nearest_codes,
    "normalise_frames": normalise_frames,
    "rgb_combine": rgb_combine,
    "rgb_gram": rgb_gram,
    "slot_attention": slot_attention,
}
"""By the name of the operator's route."""
