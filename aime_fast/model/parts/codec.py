"""Frame encoder q(z_t | x_t, c_t), decoder p(x_t | z_t, slots_t), and the pixel likelihoods."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.parts.layers import ConvBlock, Residual, bounded_log_variance

BIAS = 0.25
"""Added to every feature that the decoder's head reads, which then needs no bias of its own: that would be two more
passes over the largest tensor of a step. Without either the likelihood is learned more slowly (docs/log.md)."""


class Trunk(nn.Module):
    """Convolutions from the frame to the G x G feature map that slots, latents and the Gram loss read."""

    compiled = ("forward",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, patch = config.encoder_width, config.image_size // (4 * config.grid)
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(patch),
            ConvBlock(3 * patch**2, width, stride=2),
            ConvBlock(width, 2 * width, stride=2),
            Residual(2 * width),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Map standardised frames [N, 3, H, W] to features [N, 2*width, G, G]."""
        return self.layers(frames).float()


class PosteriorHead(nn.Module):
    """Diagonal Gaussian q(z_t | x_t, c_t) from the frame, the trunk's features and the context.

    A linear map of the frame at half resolution is added to the mean: with the decoder's linear map it finds the
    directions in which frames differ most within some fifty steps, and the convolutions learn the rest (docs/log.md).
    """

    compiled = ("forward",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * (config.image_size // 2) ** 2, config.latent_dim, bias=False)
        width, side = 2 * config.encoder_width, config.grid // 2
        self.down = ConvBlock(width, 2 * width, stride=2)
        self.features = nn.Linear(side**2 * 2 * width, config.mlp_dim)
        self.context = nn.Linear(config.context_dim, config.mlp_dim, bias=False)
        self.out = nn.Sequential(
            nn.LayerNorm(config.mlp_dim), nn.SiLU(), nn.Linear(config.mlp_dim, 2 * config.latent_dim)
        )

    def forward(self, frames: Tensor, features: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised frames [B*T, 3, H, W], features [B*T, 2w, G, G], c [B, T, C] -> mean, log-variance [B, T, D]."""
        cells = self.down(features).movedim(1, -1)  # as channels-last memory has them
        hidden = self.features(cells.flatten(1)).unflatten(0, context.shape[:2])
        mean, raw = self.out(hidden + self.context(context)).float().chunk(2, dim=-1)
        linear = self.linear(F.avg_pool2d(frames, 2).flatten(1)).view_as(mean)
        return mean + linear, bounded_log_variance(raw - 2.0)


class Decoder(nn.Module):
    """Latent and slots -> the pixel distribution; nothing else of the frame reaches it.

    The distribution lies around the mean frame and a linear map of z, the counterpart of the posterior's. It is over
    `patch`^2 interleaved sub-images (`subimages`), whose parameters the likelihood makes of features by the `head`'s
    weight: they are the largest tensor of a step, and this way it is never rearranged.
    """

    compiled = ("forward",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.side = config.decoder_width, config.grid // 2
        self.patch = config.image_size // (4 * config.grid)
        inputs = config.latent_dim + config.num_slots * config.slot_dim
        self.inputs = nn.Sequential(nn.Linear(inputs, config.mlp_dim), nn.LayerNorm(config.mlp_dim), nn.SiLU())
        self.expand = nn.Linear(config.mlp_dim, self.side**2 * 4 * width)
        self.layers = nn.Sequential(
            nn.SiLU(),
            ConvBlock(4 * width, 2 * width, stride=-2),
            Residual(2 * width),
            ConvBlock(2 * width, width, stride=-2),
            ConvBlock(width, width, stride=-2),
        )
        channels = 10 * config.num_mixtures if config.likelihood == "logistic_mixture" else 3
        self.head = nn.Linear(width, self.patch**2 * channels, bias=False)
        self.centre = nn.Linear(config.latent_dim, 3 * config.image_size**2, bias=False)
        nn.init.zeros_(self.centre.weight)

    def forward(self, latent: Tensor, slots: Tensor, mean_frame: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, T, D], slots [B, T, S, d], mean frame [3, H, W] -> features at every pixel of a sub-image, and centre.

        Features [B*T, h * w, F], centre [B*T, patch^2, 3, h, w], with h = H/patch and w = W/patch.
        """
        hidden = self.expand(self.inputs(torch.cat([latent, slots.flatten(2)], dim=-1))).flatten(0, 1)
        grid = hidden.unflatten(1, (self.side, self.side, -1)).movedim(-1, 1)  # channels-last
        features = self.layers(grid).add_(BIAS)
        centre = self.centre(latent).view(-1, self.patch**2, 3, *features.shape[2:]).float()
        centre = centre + subimages(mean_frame[None], self.patch)
        return features.movedim(1, -1).flatten(1, 2), centre


def subimages(frames: Tensor, patch: int) -> Tensor:
    """Frames [N, C, H, W] -> [N, patch^2, C, H/patch, W/patch]: number i*patch + j has the pixels [i::, j::patch]."""
    return F.pixel_unshuffle(frames, patch).unflatten(1, (-1, patch**2)).transpose(1, 2)


def from_subimages(parts: Tensor) -> Tensor:
    """The inverse of `subimages`."""
    return F.pixel_shuffle(parts.transpose(1, 2).flatten(1, 2), math.isqrt(parts.shape[1]))
