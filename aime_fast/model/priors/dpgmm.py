"""The generative prior p(z_t | h_{t-1}, a_{t-1}, z_{t-1}): a Dirichlet-process mixture that all frames share."""

import torch
from torch import Tensor, nn

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw, Draws
from aime_fast.model.parts.layers import bounded_log_variance, joined, mlp, wide
from aime_fast.model.priors.mixture import APART, MixtureDistribution
from aime_fast.model.priors.prior import Prior, StickMeasure
from aime_fast.model.priors.sticks import (
    expected_weights,
    inverse_softplus,
    kumaraswamy_mean,
    log_softplus,
    stick_divergences,
)
from aime_kernels import kumaraswamy_log_weights


class DPGMMPrior(Prior):
    """A component is a regime of motion; one stick measure pi for the data set says how common each is.

    Weights of a frame are proportional to pi_k exp(g_k(h, a)), with a gate g (as in recurrent switching systems,
    Linderman et al. 2017). Component k adds an offset o_k and a low-rank change U_k r(h, a) to the common prediction.
    q(v_k) = Kumaraswamy(a_k, b_k) of the sticks and q(alpha) = Gamma(c, r) of the concentration are parameters of the
    model, not of a frame, so their divergences count once for all frames of the data set.
    """

    alpha_prior: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        components, dim, rank = config.max_components, config.latent_dim, config.regime_rank
        self.draws = (Draw("sticks", "uniform", (components - 1,)),)
        alpha_prior = (config.concentration_shape, config.concentration_rate)
        self.register_buffer("alpha_prior", torch.tensor(alpha_prior), persistent=False)
        self.carry = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.carry.weight)
        inputs, width = config.hidden_dim + config.action_dim, config.mlp_dim
        self.hidden = nn.Sequential(mlp(inputs, width, width), nn.LayerNorm(width), nn.SiLU())
        self.mean, self.log_var = nn.Linear(width, dim), nn.Linear(width, dim)
        self.gate, self.regime = nn.Linear(width, components), nn.Linear(width, rank)
        self.log_var_offsets = nn.Parameter(torch.zeros(components, dim))
        self.offsets = nn.Parameter(APART / dim**0.5 * torch.randn(components, dim))
        self.directions = nn.Parameter(APART / dim**0.5 * torch.randn(rank, components * dim))
        start = torch.tensor([1.0, config.concentration_shape / config.concentration_rate])
        self.sticks = nn.Parameter(inverse_softplus(start)[:, None].repeat(1, components - 1))
        self.concentration = nn.Parameter(inverse_softplus(torch.tensor(alpha_prior)))

    def forward(self, hidden: Tensor, actions: Tensor, latent: Tensor, draws: Draws) -> MixtureDistribution:
        """The mixture of frames t from h_{t-1} [B, T, H], a_{t-1} [B, T, A], z_{t-1} [B, T, D] and draws."""
        features = self.hidden(torch.cat([hidden, actions], dim=-1))
        heads = self.mean, self.log_var, self.gate, self.regime
        read = joined(features, [head.weight for head in heads], [head.bias for head in heads])
        mean, raw, gate, regime = read.split([head.out_features for head in heads], -1)
        own = (wide(regime).tanh() @ self.directions).unflatten(-1, self.offsets.shape)
        means = wide(mean + self.carry(latent))[:, :, None] + self.offsets + own
        log_vars = bounded_log_variance(wide(raw)[:, :, None] + self.log_var_offsets)
        log_weights, divergences = self._weights(wide(gate), draws["sticks"])
        return MixtureDistribution(log_weights, means, log_vars, divergences)

    @torch.no_grad()
    def measure(self) -> StickMeasure:
        """See `Prior.measure`; without the gate, which depends on the frame."""
        log_shape, log_rate = log_softplus(self.concentration).unbind(-1)
        sticks = kumaraswamy_mean(*log_softplus(self.sticks).unbind(0))
        return StickMeasure(expected_weights(sticks), (log_shape - log_rate).exp(), torch.div(*self.alpha_prior))

    def _weights(self, gate: Tensor, uniform: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-weights [B, T, K], and the divergences' share of one frame."""
        log_shape, log_rate = log_softplus(self.concentration).unbind(-1)
        log_a, log_b = log_softplus(self.sticks).unbind(0)
        found = stick_divergences(log_a, log_b, log_shape, log_rate, self.alpha_prior)
        divergences = {name: (kl / self.frames_in_data).expand(gate.shape[:2]) for name, kl in found.items()}
        measure = kumaraswamy_log_weights(log_a.expand_as(uniform), log_b.expand_as(uniform), uniform)
        return (measure + gate).log_softmax(-1), divergences
