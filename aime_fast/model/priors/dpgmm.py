"""The generative prior p(z_t | h_{t-1}, c_{t-1}): a Dirichlet-process Gaussian mixture by stick-breaking."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.parts.layers import bounded_log_variance, in_float32, mlp
from aime_kernels import (
    expected_kumaraswamy_beta_kl,
    gamma_kl,
    kumaraswamy_log_weights,
)

LOG_SHAPE_RANGE = (math.log(0.05), math.log(50.0))
"""Bounds of log a, log b and log c, log r: where the closed forms keep their stated accuracy."""


@dataclass
class MixturePrior:
    """The prior of every frame; K components, leading axes [B, T]."""

    log_weights: Tensor
    """log pi [B, T, K], from one draw of the sticks; exp sums to 1."""
    means: Tensor
    """[B, T, K, D]."""
    log_vars: Tensor
    """[B, T, K, D]."""
    log_a: Tensor
    """Kumaraswamy log a [B, T, K-1]."""
    log_b: Tensor
    """Kumaraswamy log b [B, T, K-1]."""
    log_concentration: Tensor
    """Log shape c of q(alpha) = Gamma(c, r), [B, T]."""
    log_rate: Tensor
    """Log rate r of q(alpha), [B, T]."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of z [B, T, D]: a component by its weight, then its Gaussian."""
        batch, frames, _, dim = self.means.shape
        flat = self.log_weights.exp().flatten(0, 1)
        chosen = torch.multinomial(flat, 1, generator=generator).view(batch, frames, 1, 1).expand(-1, -1, 1, dim)
        mean, log_var = self.means.gather(2, chosen)[:, :, 0], self.log_vars.gather(2, chosen)[:, :, 0]
        noise = torch.randn(mean.shape, generator=generator, device=generator.device if generator else None)
        return mean + (0.5 * log_var).exp() * noise.to(mean.device)


class DPGMMPrior(nn.Module):
    """Networks of the sticks, the concentration and the components (model page: docs/model.md, part 3)."""

    compiled = ("forward", "divergences")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.components, self.latent_dim = config.max_components, config.latent_dim
        self.alpha_prior = (config.concentration_shape, config.concentration_rate)
        self.start_context = nn.Parameter(torch.zeros(config.context_dim))
        self.start_latent = nn.Parameter(torch.zeros(config.latent_dim))
        self.carry = nn.Linear(config.latent_dim, config.latent_dim, bias=False)
        nn.init.eye_(self.carry.weight)
        inputs = config.hidden_dim + config.context_dim
        self.hidden = nn.Sequential(
            mlp(inputs, config.mlp_dim, config.mlp_dim), nn.LayerNorm(config.mlp_dim), nn.SiLU()
        )
        self.sticks = nn.Linear(config.mlp_dim, 2 * (self.components - 1))
        self.concentration = nn.Linear(config.mlp_dim, 2)
        self.mean = nn.Linear(config.mlp_dim, self.latent_dim)
        self.log_vars = nn.Linear(config.mlp_dim, self.components * self.latent_dim)
        # Near each other: components that start apart leave all of z to the one that happens to lie nearest.
        self.offsets = nn.Parameter(0.15 * torch.randn(self.components, self.latent_dim))
        self._start_at_prior()

    def _start_at_prior(self) -> None:
        """Biases that put q(alpha) at its prior and each stick near Beta(1, E alpha)."""
        shape, rate = self.alpha_prior
        with torch.no_grad():
            self.concentration.bias.copy_(inverse_softplus(torch.tensor([shape, rate])))
            raw = inverse_softplus(torch.tensor([1.0, shape / rate]))
            self.sticks.bias.copy_(raw.repeat_interleave(self.components - 1))
            self.sticks.weight.mul_(0.1)
            self.concentration.weight.mul_(0.1)

    def forward(self, hidden: Tensor, context: Tensor, latent: Tensor, uniform: Tensor) -> MixturePrior:
        """The prior of frames t.

        h_{t-1} [B, T, H], c_{t-1} [B, T, C], z_{t-1} [B, T, D], the sticks' draws U [B, T, K-1] in (0, 1). Components
        lie around one point foreseen from h and c, plus a linear map of z_{t-1}, at first the identity: frames resemble
        the one before. How they lie around it is learned and the same for all frames: K guesses a frame, of which
        the nearest counts, are K chances to learn the training frames by heart (docs/log.md).
        """
        features = self.hidden(torch.cat([hidden, context], dim=-1))
        log_a, log_b = log_softplus(self.sticks(features)).chunk(2, dim=-1)
        log_shape, log_rate = log_softplus(self.concentration(features)).unbind(-1)
        centre = (self.mean(features) + self.carry(latent)).float()
        return MixturePrior(
            log_weights=kumaraswamy_log_weights(log_a, log_b, uniform),
            means=centre[:, :, None] + self.offsets,
            log_vars=bounded_log_variance(self.log_vars(features).float().unflatten(-1, self.offsets.shape)),
            log_a=log_a,
            log_b=log_b,
            log_concentration=log_shape,
            log_rate=log_rate,
        )

    def divergences(self, prior: MixturePrior) -> tuple[Tensor, Tensor]:
        """`stick_kl` and `alpha_kl`."""
        return self.stick_kl(prior), self.alpha_kl(prior)

    def stick_kl(self, prior: MixturePrior) -> Tensor:
        """E_alpha KL(Kumaraswamy(a, b) || Beta(1, alpha)) summed over the sticks, in nats, [B, T].

        alpha enters the divergence only through E[alpha] = c/r and E[log alpha] = digamma(c) - log r, so no draw is
        needed (Nalisnick & Smyth 2017, eq. 12, averaged over q(alpha)).
        """
        mean = (prior.log_concentration - prior.log_rate).exp()
        mean_log = torch.digamma(prior.log_concentration.exp()) - prior.log_rate
        kl = in_float32(expected_kumaraswamy_beta_kl)(prior.log_a, prior.log_b, mean[..., None], mean_log[..., None])
        return kl.sum(-1)

    def alpha_kl(self, prior: MixturePrior) -> Tensor:
        """KL(Gamma(c, r) || Gamma(a0, b0)) of the concentration, in nats, [B, T]."""
        shape, rate = (prior.log_rate.new_tensor(value) for value in self.alpha_prior)
        return gamma_kl(prior.log_concentration.exp(), prior.log_rate.exp(), shape, rate)


def log_softplus(raw: Tensor) -> Tensor:
    """log softplus(raw) in float32, clamped to `LOG_SHAPE_RANGE` with the gradient let through at the bounds."""
    log = F.softplus(raw.float()).clamp_min(1e-20).log()
    return log + (log.clamp(*LOG_SHAPE_RANGE) - log).detach()


def inverse_softplus(value: Tensor) -> Tensor:
    """The x with softplus(x) = value > 0."""
    return value + torch.log(-torch.expm1(-value))
