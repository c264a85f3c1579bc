"""Frame encoder q(z_t | x_t, c_t) and the decoder's features of p(x_t | z_t, slots_t)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw
from aime_fast.model.parts.layers import ConvBlock, Residual, bounded_log_variance, wide

BIAS = 0.25
"""Added to every feature that the decoder's head reads. It replaces a bias of the head, which would cost two passes
over the largest tensor of a step. Without either the likelihood learns more slowly (docs/log.md)."""


class Trunk(nn.Module):
    """Convolutions from the frame to the G x G feature map that slots, latents and the Gram loss read."""

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
        return wide(self.layers(frames))


class PosteriorHead(nn.Module):
    """Diagonal Gaussian q(z_t | x_t, c_t) from the frame, the trunk's features and the context.

    A linear map of the frame at half resolution is added to the mean. Together with the decoder's linear map it finds
    the directions of largest variance within about fifty steps; the convolutions learn the rest (docs/log.md).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.draws: tuple[Draw, ...] = (Draw("latent", "normal", (config.kl_samples, config.latent_dim)),)
        self.linear = nn.Linear(3 * (config.image_size // 2) ** 2, config.latent_dim, bias=False)
        width, side = 2 * config.encoder_width, config.grid // 2
        self.down = ConvBlock(width, 2 * width, stride=2)
        self.features = nn.Linear(side**2 * 2 * width, config.mlp_dim)
        self.context = nn.Linear(config.context_dim, config.mlp_dim, bias=False)
        read_out = nn.Linear(config.mlp_dim, 2 * config.latent_dim)
        self.out = nn.Sequential(nn.LayerNorm(config.mlp_dim), nn.SiLU(), read_out)

    def forward(self, frames: Tensor, features: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised frames [B*T, 3, H, W], features [B*T, 2w, G, G], c [B, T, C] -> mean, log-variance [B, T, D]."""
        cells = self.down(features).movedim(1, -1)  # the order of channels-last memory
        hidden = self.features(cells.flatten(1)).unflatten(0, context.shape[:2])
        mean, raw = wide(self.out(hidden + self.context(context))).chunk(2, dim=-1)
        linear = self.linear(F.avg_pool2d(frames, 2).flatten(1)).view_as(mean)
        return mean + linear, bounded_log_variance(raw - 2.0)


class Decoder(nn.Module):
    """Latent and slots -> features and centre of the pixel distribution; it reads nothing else of the frame.

    The centre is the mean frame plus a linear map of z, the counterpart of the posterior's. The distribution is over
    `patch`^2 interleaved sub-images (`subimages`). The likelihood computes its parameters from the features with the
    weight of `head`: they are the largest tensor of a step, and in this layout they are never rearranged.
    """

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

        Features [B, T, h * w, F], centre [B, T, patch^2, 3, h, w], with h = H/patch and w = W/patch.
        """
        hidden = self.expand(self.inputs(torch.cat([latent, slots.flatten(2)], dim=-1)))
        cells = hidden.view(latent.shape[0] * latent.shape[1], self.side, self.side, -1)
        features = self.layers(cells.movedim(-1, 1)).add_(BIAS)  # channels-last
        centre = wide(self.centre(latent).view(*latent.shape[:2], self.patch**2, 3, *features.shape[2:]))
        centre = centre + subimages(mean_frame, self.patch)
        return features.movedim(1, -1).reshape(*latent.shape[:2], -1, features.shape[1]), centre


def subimages(frames: Tensor, patch: int) -> Tensor:
    """Frames [..., C, H, W] -> [..., patch^2, C, H/patch, W/patch]: i*patch + j has the pixels [i::patch, j::patch]."""
    return F.pixel_unshuffle(frames, patch).unflatten(-3, (-1, patch**2)).transpose(-4, -3)


def from_subimages(parts: Tensor) -> Tensor:
    """The inverse of `subimages`."""
    return F.pixel_shuffle(parts.transpose(-4, -3).flatten(-4, -3), math.isqrt(parts.shape[-4]))
