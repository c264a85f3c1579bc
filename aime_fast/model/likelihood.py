"""p(x | decoder parameters): a mixture of discretised logistics with channel coupling, or a Gaussian."""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

import aime_kernels as kernels
from aime_fast.model.codec import from_subimages

GAUSSIAN_STD = 0.1
"""Fixed standard deviation of the Gaussian option, in the units of frames in [-1, 1]."""


class Likelihood(Protocol):
    """A distribution over N frames in [-1, 1], each as q sub-images [3, h, w] (`codec.subimages`)."""

    def nats(self, pixels: Tensor) -> Tensor:
        """Negative log-likelihood of whole frames, [N, q, 3, h, w] -> nats [N]."""

    def expectation(self) -> Tensor:
        """Expected sub-images [N, q, 3, h, w], unclamped; differentiable."""

    def terms(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`nats` and `expectation`, for a loss that has both."""

    def mean(self) -> Tensor:
        """Expected frames [N, 3, H, W], clamped to [-1, 1]."""


@dataclass
class LogisticMixture:
    """Mixture of discretised logistics on 256 levels (Salimans et al. 2017), located around a centre."""

    parameters: Tensor
    """[N, q, 10*M, h, w], as the operator wants them."""
    centre: Tensor
    """[N, q, 3, h, w]: what their locations are offsets from."""

    def nats(self, pixels: Tensor) -> Tensor:
        """Negative log-likelihood of whole frames, [N, q, 3, h, w] -> nats [N]."""
        return self.terms(pixels)[0]

    def expectation(self) -> Tensor:
        """Expected sub-images [N, q, 3, h, w], unclamped; differentiable."""
        return kernels.logistic_mixture_mean(self.parameters.float().flatten(0, 1)).view_as(self.centre) + self.centre

    def terms(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`nats` and `expectation`, for a loss that has both."""
        blocks, values, centre = (x.flatten(0, 1) for x in (self.parameters.float(), pixels, self.centre))
        log_prob, mean = kernels.logistic_mixture_terms(values, blocks, centre)
        return -log_prob.view(pixels.shape[:2]).sum(1), mean.view_as(pixels)

    def mean(self) -> Tensor:
        """Expected frames [N, 3, H, W], clamped to [-1, 1]."""
        return from_subimages(self.expectation()).clamp(-1, 1)


@dataclass
class Gaussian:
    """Independent Gaussians of fixed width; a density, so nats may be negative."""

    offsets: Tensor
    """Means [N, q, 3, h, w], as offsets from the centre."""
    centre: Tensor
    """[N, q, 3, h, w]."""

    def nats(self, pixels: Tensor) -> Tensor:
        """Negative log-density of whole frames, [N, q, 3, h, w] -> nats [N]."""
        squares = ((pixels - self.expectation()) / GAUSSIAN_STD).square().flatten(1).sum(1)
        return 0.5 * squares + pixels[0].numel() * math.log(GAUSSIAN_STD * math.sqrt(2 * math.pi))

    def expectation(self) -> Tensor:
        """Expected sub-images [N, q, 3, h, w], unclamped; differentiable."""
        return self.offsets.float() + self.centre

    def terms(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`nats` and `expectation`, for a loss that has both."""
        return self.nats(pixels), self.expectation()

    def mean(self) -> Tensor:
        """Expected frames [N, 3, H, W], clamped to [-1, 1]."""
        return from_subimages(self.expectation()).clamp(-1, 1)


FAMILIES: dict[str, type] = {"logistic_mixture": LogisticMixture, "gaussian": Gaussian}
"""Likelihoods by the name that `ModelConfig.likelihood` gives."""
