"""The generative prior p(z_t | h_{t-1}, c_{t-1}): a Dirichlet-process Gaussian mixture by stick-breaking."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw, Draws
from aime_fast.model.parts.layers import bounded_log_variance, in_float32, joined, mlp, wide
from aime_fast.model.priors.prior import Prior, device_of, standard_normal
from aime_kernels import expected_kumaraswamy_beta_kl, gamma_kl, kumaraswamy_log_weights, mixture_log_density

LOG_SHAPE_RANGE = (math.log(0.05), math.log(50.0))
"""Bounds of log a, log b, log c and log r, within which the closed forms keep their stated accuracy."""


@dataclass
class MixturePrior:
    """The prior of every frame: a mixture of K Gaussians, and q(alpha) and the sticks that its weights come from."""

    log_weights: Tensor  # log pi [B, T, K], from one draw of the sticks; exp sums to 1
    means: Tensor  # [B, T, K, D]
    log_vars: Tensor  # [B, T, K, D]
    log_a: Tensor  # Kumaraswamy log a [B, T, K-1]
    log_b: Tensor  # Kumaraswamy log b [B, T, K-1]
    log_concentration: Tensor  # log shape c of q(alpha) = Gamma(c, r), [B, T]
    log_rate: Tensor  # log rate r of q(alpha), [B, T]
    alpha_prior: Tensor  # shape a0 and rate b0 of the prior Gamma(a0, b0) of alpha, [2]

    def log_prob(self, z: Tensor) -> Tensor:
        """log sum_k pi_k N(z; mu_k, s_k) in nats: z [B, T, n, D] -> [B, T, n]."""
        return self.log_prob_and_responsibilities(z)[0]

    def log_prob_and_responsibilities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob(z)` and log p(k | z) [B, T, n, K]."""
        frames = (x.flatten(0, 1) for x in (z, self.log_weights, self.means, self.log_vars))
        log_p, log_r = mixture_log_density(*frames)
        return log_p.view(z.shape[:-1]), log_r.view(*z.shape[:-1], -1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of z [B, T, D]: a component by its weight, then its Gaussian, which alone is differentiable."""
        batch, frames, _, dim = self.means.shape
        weights = self.log_weights.detach().exp().flatten(0, 1).to(device_of(generator))
        drawn = torch.multinomial(weights, 1, generator=generator).to(self.means.device)
        chosen = drawn.view(batch, frames, 1, 1).expand(-1, -1, 1, dim)
        mean, log_var = (x.gather(2, chosen)[:, :, 0] for x in (self.means, self.log_vars))
        return mean + (0.5 * log_var).exp() * standard_normal(mean, generator)

    def kl_terms(self) -> dict[str, Tensor]:
        """`stick_kl` and `alpha_kl`, [B, T] in nats.

        stick_kl = E_alpha KL(Kumaraswamy(a, b) || Beta(1, alpha)), summed over the sticks (Nalisnick & Smyth 2017, eq.
        12), is exact: alpha enters only through E[alpha] = c/r and E[log alpha] = digamma(c) - log r. alpha_kl =
        KL(Gamma(c, r) || Gamma(a0, b0)).
        """
        mean = (self.log_concentration - self.log_rate).exp()
        mean_log = torch.digamma(self.log_concentration.exp()) - self.log_rate
        sticks = in_float32(expected_kumaraswamy_beta_kl)(self.log_a, self.log_b, mean[..., None], mean_log[..., None])
        alpha_kl = gamma_kl(self.log_concentration.exp(), self.log_rate.exp(), *self.alpha_prior)
        return {"stick_kl": sticks.sum(-1), "alpha_kl": alpha_kl}


class DPGMMPrior(Prior):
    """Networks of the sticks, the concentration and the components (docs/model.md, part 3).

    The components lie around one point predicted from h and c plus a linear map of z_{t-1}, which starts as the
    identity because frames resemble the one before. Their offsets are learned and the same for all frames. With offsets
    that depend on the frame the K components become K guesses a frame and overfit (docs/log.md).
    """

    alpha_prior: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        components, dim = config.max_components, config.latent_dim
        self.draws = (Draw("sticks", "uniform", (components - 1,)),)
        alpha_prior = (config.concentration_shape, config.concentration_rate)
        self.register_buffer("alpha_prior", torch.tensor(alpha_prior), persistent=False)
        self.carry = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.carry.weight)
        inputs, width = config.hidden_dim + config.context_dim, config.mlp_dim
        self.hidden = nn.Sequential(mlp(inputs, width, width), nn.LayerNorm(width), nn.SiLU())
        self.sticks = nn.Linear(width, 2 * (components - 1))
        self.concentration = nn.Linear(width, 2)
        self.mean = nn.Linear(width, dim)
        self.log_vars = nn.Linear(width, components * dim)
        # Close together: when components start apart, the one nearest to the first posteriors takes every z.
        self.offsets = nn.Parameter(0.15 * torch.randn(components, dim))
        self._start_at_prior(*alpha_prior)

    @torch.no_grad()
    def _start_at_prior(self, shape: float, rate: float) -> None:
        """Set the biases so that q(alpha) starts at its prior and each stick near Beta(1, E alpha)."""
        for layer, start in ((self.concentration, [shape, rate]), (self.sticks, [1.0, shape / rate])):
            raw = inverse_softplus(torch.tensor(start))
            layer.bias.copy_(raw.repeat_interleave(len(layer.bias) // 2))
            layer.weight.mul_(0.1)

    def forward(self, hidden: Tensor, context: Tensor, latent: Tensor, draws: Draws) -> MixturePrior:
        """The mixture of frames t from h_{t-1} [B, T, H], c_{t-1} [B, T, C], z_{t-1} [B, T, D] and draws."""
        features = self.hidden(torch.cat([hidden, context], dim=-1))
        heads = self.concentration, self.sticks, self.mean, self.log_vars
        read = joined(features, [head.weight for head in heads], [head.bias for head in heads])
        shapes, mean, raw = read.split([2 * len(self.offsets), latent.shape[-1], self.offsets.numel()], -1)
        concentration, log_a, log_b = log_softplus(shapes).split([2, *[len(self.offsets) - 1] * 2], -1)
        log_shape, log_rate = concentration.unbind(-1)
        log_weights = kumaraswamy_log_weights(log_a, log_b, draws["sticks"])
        means = wide(mean + self.carry(latent))[:, :, None] + self.offsets
        log_vars = bounded_log_variance(wide(raw).unflatten(-1, self.offsets.shape))
        return MixturePrior(log_weights, means, log_vars, log_a, log_b, log_shape, log_rate, self.alpha_prior)


def log_softplus(raw: Tensor) -> Tensor:
    """log softplus(raw) in float32, clamped to `LOG_SHAPE_RANGE`; the gradient passes the bounds unchanged."""
    log = F.softplus(wide(raw)).clamp_min(1e-20).log()
    return log + (log.clamp(*LOG_SHAPE_RANGE) - log).detach()


def inverse_softplus(value: Tensor) -> Tensor:
    """The x with softplus(x) = value > 0."""
    return value + torch.log(-torch.expm1(-value))
