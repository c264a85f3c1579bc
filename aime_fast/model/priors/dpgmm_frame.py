"""The published prior: a Dirichlet-process Gaussian mixture with sticks and concentration of every frame's own."""

import torch
from torch import Tensor, nn

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw, Draws
from aime_fast.model.parts.layers import bounded_log_variance, joined, mlp, wide
from aime_fast.model.priors.mixture import APART, MixtureDistribution
from aime_fast.model.priors.prior import Prior
from aime_fast.model.priors.sticks import inverse_softplus, log_softplus, stick_divergences
from aime_kernels import kumaraswamy_log_weights


class DPGMMFramePrior(Prior):
    """Networks of the sticks, the concentration and the components of every frame (docs/model.md).

    The components lie around one point predicted from h and a plus a linear map of z_{t-1}, which starts as the
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
        inputs, width = config.hidden_dim + config.action_dim, config.mlp_dim
        self.hidden = nn.Sequential(mlp(inputs, width, width), nn.LayerNorm(width), nn.SiLU())
        self.sticks = nn.Linear(width, 2 * (components - 1))
        self.concentration = nn.Linear(width, 2)
        self.mean = nn.Linear(width, dim)
        self.log_vars = nn.Linear(width, components * dim)
        self.offsets = nn.Parameter(APART / dim**0.5 * torch.randn(components, dim))
        self._start_at_prior(*alpha_prior)

    @torch.no_grad()
    def _start_at_prior(self, shape: float, rate: float) -> None:
        """Set the biases so that q(alpha) starts at its prior and each stick near Beta(1, E alpha)."""
        for layer, start in ((self.concentration, [shape, rate]), (self.sticks, [1.0, shape / rate])):
            raw = inverse_softplus(torch.tensor(start))
            layer.bias.copy_(raw.repeat_interleave(len(layer.bias) // 2))
            layer.weight.mul_(0.1)

    def forward(self, hidden: Tensor, actions: Tensor, latent: Tensor, draws: Draws) -> MixtureDistribution:
        """The mixture of frames t from h_{t-1} [B, T, H], a_{t-1} [B, T, A], z_{t-1} [B, T, D] and draws."""
        features = self.hidden(torch.cat([hidden, actions], dim=-1))
        heads = self.concentration, self.sticks, self.mean, self.log_vars
        read = joined(features, [head.weight for head in heads], [head.bias for head in heads])
        shapes, mean, raw = read.split([2 * len(self.offsets), latent.shape[-1], self.offsets.numel()], -1)
        concentration, log_a, log_b = log_softplus(shapes).split([2, *[len(self.offsets) - 1] * 2], -1)
        log_shape, log_rate = concentration.unbind(-1)
        log_weights = kumaraswamy_log_weights(log_a, log_b, draws["sticks"])
        means = wide(mean + self.carry(latent))[:, :, None] + self.offsets
        log_vars = bounded_log_variance(wide(raw).unflatten(-1, self.offsets.shape))
        divergences = stick_divergences(log_a, log_b, log_shape, log_rate, self.alpha_prior)
        return MixtureDistribution(log_weights, means, log_vars, divergences)
