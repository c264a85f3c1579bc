"""What a prior of the latent state must provide."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw, Draws


class PriorDistribution(Protocol):
    """p(z_t | h_{t-1}, a_{t-1}, z_{t-1}) of every frame of [B, T], as a mixture of K components (K = 1: no mixture)."""

    @property
    def log_weights(self) -> Tensor:
        """Log of the components' weights, [B, T, K]; the weights sum to 1."""

    @property
    def mean(self) -> Tensor:
        """Its mean, [B, T, D]; differentiable."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density in nats of n samples a frame: z [B, T, n, D] -> [B, T, n]."""

    def log_prob_and_responsibilities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`log_prob(z)` and, from the same evaluation, log p(component | z) [B, T, n, K]."""

    def sample(self, noise: "Noise") -> Tensor:
        """One draw of z, [B, T, D]; differentiable with respect to means and variances."""

    def split(self, rows: int) -> "tuple[PriorDistribution, PriorDistribution]":
        """Those of the first `rows` windows, and those of the others."""

    def until(self, frames: int) -> "PriorDistribution":
        """Those of the first `frames` frames."""

    def kl_terms(self) -> dict[str, Tensor]:
        """The prior's own divergences by name, each [B, T] in nats; they enter the ELBO with the weight of `kl_z`."""


class StickMeasure(NamedTuple):
    """What is believed of the weights of a Dirichlet process."""

    weights: Tensor
    """E[pi_k] under the posterior, [K]; sums to 1."""
    concentration: Tensor
    """E[alpha] under the posterior, 0-d."""
    start: Tensor
    """E[alpha] under the prior, 0-d."""


class Prior(nn.Module, ABC):
    """The network that gives a `PriorDistribution`; subclasses add their layers and list them in `PRIORS`."""

    frames_in_data: Tensor
    """0-d: divergences of what all frames share count once for this number of frames; 1 until `prepare` sets it."""
    draws: tuple[Draw, ...] = ()
    """The random numbers that `forward` reads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("frames_in_data", torch.tensor(1.0))
        self.start_latent = nn.Parameter(torch.zeros(config.latent_dim))

    @abstractmethod
    def forward(self, hidden: Tensor, actions: Tensor, latent: Tensor, draws: Draws) -> PriorDistribution:
        """The prior of frames t from h_{t-1} [B, T, H], a_{t-1} [B, T, A], z_{t-1} [B, T, D] and `self.draws`.

        At t = 0 the model passes its learned start, the first LSTM state and `start_latent`, and no action (zeros).
        """

    def measure(self) -> "StickMeasure | None":
        """The stick measure that all frames share; None for a prior without one."""
        return None


@dataclass(frozen=True)
class Noise:
    """The random numbers of samples, drawn on the generator's device: they do not depend on the model's."""

    generator: Generator
    distinct: int | None = None
    """Windows with numbers of their own, which those after them repeat. None: all."""

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape and device of `like` [B, T, ...], float32."""
        return _repeated(torch.randn(self._shape(like), generator=self.generator, device=self.generator.device), like)

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers in [0, 1), likewise."""
        return _repeated(torch.rand(self._shape(like), generator=self.generator, device=self.generator.device), like)

    def _shape(self, like: Tensor) -> tuple[int, ...]:
        return (self.distinct or len(like), *like.shape[1:])


def _repeated(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.to(like.device).repeat(len(like) // len(numbers), *[1] * (like.ndim - 1))
