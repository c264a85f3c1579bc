"""p(x | z): a mixture of discretised logistics with channel coupling, or a Gaussian."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

import aime_kernels as kernels
from aime_fast.model.parts.layers import wide
from aime_fast.model.parts.subimages import from_subimages

GAUSSIAN_STD = 0.1
"""Fixed standard deviation of the Gaussian option, in the units of frames in [-1, 1]."""


@dataclass
class Likelihood(ABC):
    """A distribution over [B, T] frames in [-1, 1], each as q sub-images [3, h, w] (`subimages`).

    Its parameters, the largest tensor of a step, are a linear map of features at every pixel, computed when needed.
    """

    features: Tensor  # [B, T, h * w, F]
    weight: Tensor  # [q * channels, F]
    centre: Tensor  # [B, T, q, 3, h, w]: the locations are offsets from it

    def parameters(self) -> Tensor:
        """[B, T, q, channels, h, w], at least float32; differentiable."""
        features, (*shape, images, _, height, width) = self.features.flatten(0, 1), self.centre.shape
        weight = self.weight.to(features.dtype).expand(len(features), -1, -1)
        return wide(torch.bmm(weight, features.mT)).view(*shape, images, -1, height, width)

    def mean(self) -> Tensor:
        """Expected frames [B, T, 3, H, W], clamped to [-1, 1]; differentiable where not clamped."""
        return from_subimages(self.expectation()).clamp(-1, 1)

    @abstractmethod
    def expectation(self) -> Tensor:
        """Expected sub-images [B, T, q, 3, h, w], unclamped; differentiable."""

    @abstractmethod
    def loss(self, pixels: Tensor, of_nats: Tensor, of_error: float) -> tuple[Tensor, Tensor, Tensor]:
        """The sum over frames of of_nats * nats + of_error * error, 0-d; nats and error [B, T], without a gradient.

        `pixels` [B, T, q, 3, h, w] in [-1, 1] are the frames as sub-images. Nats are a frame's negative log-likelihood;
        their weights `of_nats` [B, T] are not differentiated. The error is that of `expectation`, squared and summed.
        """


class LogisticMixture(Likelihood):
    """Mixture of discretised logistics on 256 levels (Salimans et al. 2017), with locations relative to the centre."""

    def expectation(self) -> Tensor:
        """Expected sub-images [B, T, q, 3, h, w], unclamped; differentiable."""
        return kernels.logistic_mixture_mean(self.parameters().flatten(0, 2)).view_as(self.centre) + self.centre

    def loss(self, pixels: Tensor, of_nats: Tensor, of_error: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `Likelihood.loss`, by one operator that never keeps the parameters."""
        shape, images = pixels.shape[:2], pixels.shape[2:4]
        x, centre = (frames.reshape(-1, *images, self.features.shape[2]) for frames in (pixels, self.centre))
        features, of_frame = self.features.flatten(0, 1), of_nats.flatten()
        loss, nats, error = kernels.logistic_mixture_loss(x, features, self.weight, centre, of_frame, of_error)
        return loss, nats.view(shape), error.view(shape)


class Gaussian(Likelihood):
    """Independent Gaussians of fixed width; a density, so nats may be negative."""

    def expectation(self) -> Tensor:
        """Expected sub-images [B, T, q, 3, h, w], unclamped; differentiable."""
        return self.parameters() + self.centre

    def loss(self, pixels: Tensor, of_nats: Tensor, of_error: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `Likelihood.loss`; nats are those of the density."""
        error = (pixels - self.expectation()).square().flatten(2).sum(2)
        nats = error / (2 * GAUSSIAN_STD**2) + pixels[0, 0].numel() * math.log(GAUSSIAN_STD * math.sqrt(2 * math.pi))
        return (nats * of_nats + of_error * error).sum(), nats.detach(), error.detach()


FAMILIES: dict[str, type[Likelihood]] = {"logistic_mixture": LogisticMixture, "gaussian": Gaussian}
"""Likelihoods by the name that `ModelConfig.likelihood` gives."""
