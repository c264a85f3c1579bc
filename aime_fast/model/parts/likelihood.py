"""p(x | decoder parameters): a mixture of discretised logistics with channel coupling, or a Gaussian."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

import aime_kernels as kernels
from aime_fast.model.parts.codec import from_subimages

GAUSSIAN_STD = 0.1
"""Fixed standard deviation of the Gaussian option, in the units of frames in [-1, 1]."""


@dataclass
class Likelihood(ABC):
    """A distribution over N frames in [-1, 1], each as q sub-images [3, h, w] (`codec.subimages`).

    Its parameters, the largest tensor of a step, are a linear map of features at every pixel, made where needed.
    """

    features: Tensor
    """[N, h * w, F]."""
    weight: Tensor
    """[q * channels, F]."""
    centre: Tensor
    """[N, q, 3, h, w]: what the locations are offsets from."""

    def parameters(self) -> Tensor:
        """[N, q, channels, h, w], float32; differentiable."""
        weight = self.weight.to(self.features.dtype).expand(len(self.features), -1, -1)
        images, _, *side = self.centre.shape[1:]
        return torch.bmm(weight, self.features.mT).float().view(len(weight), images, -1, *side)

    def mean(self) -> Tensor:
        """Expected frames [N, 3, H, W], clamped to [-1, 1]."""
        return from_subimages(self.expectation()).clamp(-1, 1)

    def nats(self, pixels: Tensor) -> Tensor:
        """Negative log-likelihood of whole frames, [N, q, 3, h, w] -> nats [N], without a gradient."""
        with torch.no_grad():
            return self.loss(pixels, pixels.new_ones(len(pixels)), 0.0)[1]

    @abstractmethod
    def expectation(self) -> Tensor:
        """Expected sub-images [N, q, 3, h, w], unclamped; differentiable."""

    @abstractmethod
    def loss(self, pixels: Tensor, of_nats: Tensor, of_error: float) -> tuple[Tensor, Tensor, Tensor]:
        """sum_n of_nats_n * nats_n + of_error * error_n, 0-d, which alone is differentiable; nats [N], error [N].

        pixels [N, q, 3, h, w]; of_nats [N], without a gradient; error is the squared error of `expectation`, summed.
        """


class LogisticMixture(Likelihood):
    """Mixture of discretised logistics on 256 levels (Salimans et al. 2017), located around the centre."""

    def expectation(self) -> Tensor:
        """Expected sub-images [N, q, 3, h, w], unclamped; differentiable."""
        return kernels.logistic_mixture_mean(self.parameters().flatten(0, 1)).view_as(self.centre) + self.centre

    def loss(self, pixels: Tensor, of_nats: Tensor, of_error: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `Likelihood.loss`, by one operator that never keeps the parameters."""
        x, centre = pixels.flatten(3), self.centre.flatten(3)
        return kernels.logistic_mixture_loss(x, self.features, self.weight, centre, of_nats, of_error)


class Gaussian(Likelihood):
    """Independent Gaussians of fixed width; a density, so nats may be negative."""

    def expectation(self) -> Tensor:
        """Expected sub-images [N, q, 3, h, w], unclamped; differentiable."""
        return self.parameters() + self.centre

    def loss(self, pixels: Tensor, of_nats: Tensor, of_error: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `Likelihood.loss`; nats are those of the density."""
        error = (pixels - self.expectation()).square().flatten(1).sum(1)
        nats = error / (2 * GAUSSIAN_STD**2) + pixels[0].numel() * math.log(GAUSSIAN_STD * math.sqrt(2 * math.pi))
        return (nats * of_nats + of_error * error).sum(), nats.detach(), error.detach()


FAMILIES: dict[str, type[Likelihood]] = {"logistic_mixture": LogisticMixture, "gaussian": Gaussian}
"""Likelihoods by the name that `ModelConfig.likelihood` gives."""
