"""p(x | decoder parameters): a mixture of discretised logistics with channel coupling, or a Gaussian."""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

import aime_kernels as kernels
from aime_fast.model.codec import from_subimages, subimages

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
    """[N, q, 10*M, h, w] of the q interleaved sub-images, as the operator wants them."""
    centre: Tensor
    """[N, 3, H, W]: what their locations are offsets from."""

    def nats(self, frames: Tensor) -> Tensor:
        """Negative log-likelihood of whole frames, in nats, [N]."""
        parts = self.parameters.shape[1]
        values, centre = (subimages(x, math.isqrt(parts)).flatten(0, 1) for x in (frames, self.centre))
        blocks = self.parameters.float().flatten(0, 1)
        return -kernels.logistic_mixture_log_prob(values, blocks, centre).view(-1, parts).sum(1)

    def expectation(self) -> Tensor:
        """Expected frames [N, 3, H, W], unclamped; differentiable."""
        offsets = kernels.logistic_mixture_mean(self.parameters.float().flatten(0, 1))
        return from_subimages(offsets.unflatten(0, self.parameters.shape[:2])) + self.centre

    def mean(self) -> Tensor:
        """Expected frames [N, 3, H, W], clamped to [-1, 1]."""
        return self.expectation().clamp(-1, 1)


@dataclass
class Gaussian:
    """Independent Gaussians of fixed width; a density, so nats may be negative."""

    offsets: Tensor
    """Means [N, q, 3, h, w] of the q interleaved sub-images, as offsets from the centre."""
    centre: Tensor
    """[N, 3, H, W]."""

    def nats(self, frames: Tensor) -> Tensor:
        """Negative log-density of whole frames, in nats, [N]."""
        squares = ((frames - self.expectation()) / GAUSSIAN_STD).square().flatten(1).sum(1)
        return 0.5 * squares + frames[0].numel() * math.log(GAUSSIAN_STD * math.sqrt(2 * math.pi))

    def expectation(self) -> Tensor:
        """Expected frames [N, 3, H, W], unclamped; differentiable."""
        return from_subimages(self.offsets.float()) + self.centre

    def mean(self) -> Tensor:
        """Expected frames [N, 3, H, W], clamped to [-1, 1]."""
        return self.expectation().clamp(-1, 1)


FAMILIES: dict[str, type] = {"logistic_mixture": LogisticMixture, "gaussian": Gaussian}
"""Likelihoods by the name that `ModelConfig.likelihood` gives."""
