"""p(x | decoder parameters): a mixture of discretised logistics with channel coupling, or a Gaussian."""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

import aime_kernels as kernels

GAUSSIAN_STD = 0.1
"""Fixed standard deviation of the Gaussian option, in the units of frames in [-1, 1]."""


class Likelihood(Protocol):
    """A distribution over frames [N, 3, H, W] in [-1, 1]."""

    def nats(self, frames: Tensor) -> Tensor:
        """Negative log-likelihood of whole frames, in nats, [N]."""

    def expectation(self) -> Tensor:
        """Expected frames [N, 3, H, W], unclamped; differentiable."""

    def mean(self) -> Tensor:
        """Expected frames [N, 3, H, W], clamped to [-1, 1]."""


@dataclass
class LogisticMixture:
    """Mixture of discretised logistics on 256 levels (Salimans et al. 2017), located around a centre."""

    parameters: Tensor
    """[N, 10*M, H, W], as the operator wants them."""
    centre: Tensor
    """[N, 3, H, W]: what their locations are offsets from."""

    def nats(self, frames: Tensor) -> Tensor:
        """Negative log-likelihood of whole frames, in nats, [N]."""
        return -kernels.logistic_mixture_log_prob(frames, self.parameters.float(), self.centre)

    def expectation(self) -> Tensor:
        """Expected frames [N, 3, H, W], unclamped; differentiable."""
        return kernels.logistic_mixture_mean(self.parameters.float(), self.centre)

    def mean(self) -> Tensor:
        """Expected frames [N, 3, H, W], clamped to [-1, 1]."""
        return self.expectation().clamp(-1, 1)


@dataclass
class Gaussian:
    """Independent Gaussians of fixed width; a density, so nats may be negative."""

    offsets: Tensor
    """Means [N, 3, H, W], as offsets from the centre."""
    centre: Tensor
    """[N, 3, H, W]."""

    def nats(self, frames: Tensor) -> Tensor:
        """Negative log-density of whole frames, in nats, [N]."""
        squares = ((frames - self.expectation()) / GAUSSIAN_STD).square().flatten(1).sum(1)
        return 0.5 * squares + frames[0].numel() * math.log(GAUSSIAN_STD * math.sqrt(2 * math.pi))

    def expectation(self) -> Tensor:
        """Expected frames [N, 3, H, W], unclamped; differentiable."""
        return self.offsets.float() + self.centre

    def mean(self) -> Tensor:
        """Expected frames [N, 3, H, W], clamped to [-1, 1]."""
        return self.expectation().clamp(-1, 1)


FAMILIES: dict[str, type] = {"logistic_mixture": LogisticMixture, "gaussian": Gaussian}
"""Likelihoods by the name that `ModelConfig.likelihood` gives."""
