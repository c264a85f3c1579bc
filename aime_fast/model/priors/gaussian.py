"""A single diagonal Gaussian as the prior of z: the usual choice of recurrent state-space models."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draws
from aime_fast.model.parts.layers import bounded_log_variance, mlp, wide
from aime_fast.model.priors.prior import Noise, Prior
from aime_kernels import gaussian_log_density


@dataclass
class GaussianDistribution:
    """N(mean, diag exp(log_var)) of every frame; one component."""

    mean: Tensor
    """[B, T, D]."""
    log_var: Tensor
    """[B, T, D]."""

    @property
    def log_weights(self) -> Tensor:
        """Zeros [B, T, 1]: the only component has weight 1."""
        return torch.zeros_like(self.mean[..., :1])

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats: z [B, T, n, D] -> [B, T, n]."""
        return gaussian_log_density(z, self.mean[:, :, None], self.log_var[:, :, None])

    def log_prob_and_responsibilities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob(z)`, and zeros [B, T, n, 1]."""
        log_prob = self.log_prob(z)
        return log_prob, torch.zeros_like(log_prob[..., None])

    def sample(self, noise: Noise) -> Tensor:
        """One reparameterised draw of z, [B, T, D]."""
        return self.mean + (0.5 * self.log_var).exp() * noise.normal(self.mean)

    def split(self, rows: int) -> "tuple[GaussianDistribution, GaussianDistribution]":
        """Those of the first `rows` windows, and those of the others."""
        (mean, others), (log_var, more) = (x.split([rows, len(x) - rows]) for x in (self.mean, self.log_var))
        return GaussianDistribution(mean, log_var), GaussianDistribution(others, more)

    def until(self, frames: int) -> "GaussianDistribution":
        """Those of the first `frames` frames."""
        return GaussianDistribution(self.mean[:, :frames], self.log_var[:, :frames])

    def kl_terms(self) -> dict[str, Tensor]:
        """None of its own: `kl_z` is the only divergence."""
        return {}


class GaussianPrior(Prior):
    """Mean and log-variance from h and a; z_{t-1} is added to the mean through a linear map, at first the identity."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.carry = nn.Linear(config.latent_dim, config.latent_dim, bias=False)
        nn.init.eye_(self.carry.weight)
        self.net = mlp(config.hidden_dim + config.action_dim, config.mlp_dim, 2 * config.latent_dim, layers=2)

    def forward(self, hidden: Tensor, actions: Tensor, latent: Tensor, draws: Draws) -> GaussianDistribution:
        """The Gaussian of frames t from h_{t-1} [B, T, H], a_{t-1} [B, T, A] and z_{t-1} [B, T, D]; reads no draws."""
        offset, raw = wide(self.net(torch.cat([hidden, actions], dim=-1))).chunk(2, dim=-1)
        return GaussianDistribution(offset + wide(self.carry(latent)), bounded_log_variance(raw))
