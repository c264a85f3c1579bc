"""Frame encoder q(z_t | x_t, c_t) and the decoder's features of p(x_t | z_t, slots_t)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw
from aime_fast.model.parts.attention_schema import Attention
from aime_fast.model.parts.layers import SILU_GAIN, ConvBlock, Residual, bounded_log_variance, wide

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


class Pieces(NamedTuple):
    """How the D numbers of z are divided."""

    shared: int
    slot: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Pieces":
        """Equal pieces for the slots and the rest for all; what does not divide is shared."""
        if config.codec == "dense":
            return cls(config.latent_dim, 0)
        slot = config.latent_dim // (config.num_slots + 1)
        return cls(config.latent_dim - config.num_slots * slot, slot)


class PerSlot(nn.Module):
    """x"""

    def __init__(self, config: ModelConfig, inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.shared = config.codec == "slots"
        if self.shared:
            self.layer = nn.Linear(inputs, outputs, bias=bias)
            nn.init.normal_(self.layer.weight, std=gain * inputs**-0.5)
            if bias:
                nn.init.zeros_(self.layer.bias)
        else:
            self.weight = nn.Parameter(torch.randn(config.num_slots, inputs, outputs) * gain * inputs**-0.5)
            self.bias = nn.Parameter(torch.zeros(config.num_slots, 1, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, S, in] -> [N, S, out]."""
        if self.shared:
            return self.layer(x)
        made = torch.bmm(x.transpose(0, 1), self.weight)
        return (made if self.bias is None else made + self.bias).transpose(0, 1)


class Posterior(nn.Module):
    """Diagonal Gaussian q(z_t | x_t, c_t), z_t = [shared, slot 1 .. slot S].

    The shared piece reads the whole feature map. A slot's piece reads the map weighted by the cells that the slot owns,
    and the slot itself; one network serves all slots.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.draws: tuple[Draw, ...] = (Draw("latent", "normal", (config.kl_samples, config.latent_dim)),)
        self.pieces = Pieces.of(config)
        self.low = config.posterior_low
        width, self.side = 2 * config.encoder_width, config.grid // 2
        cells, slots, hidden = self.side**2 * 2 * width, config.num_slots, config.mlp_dim
        self.down = ConvBlock(width, 2 * width, stride=2)
        self.whole = nn.Linear(cells, hidden, bias=False)
        self.context = nn.Linear(config.context_dim, hidden, bias=False)
        self.read_whole = nn.Sequential(nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, 2 * self.pieces.shared))
        self.dense = config.codec == "dense"
        if not self.dense:
            narrow = hidden // 3 if config.codec == "slots" else hidden // slots
            self.own = PerSlot(config, cells, narrow, bias=False)
            self.slot = nn.Linear(config.slot_dim, narrow, bias=False)
            self.slot_context = nn.Linear(config.context_dim, narrow, bias=False)
            self.identity = nn.Parameter(torch.randn(slots, narrow) * 0.1)
            self.read_slot = nn.Sequential(nn.LayerNorm(narrow), nn.SiLU(), PerSlot(config, narrow, 2 * self.pieces.slot))

    def forward(self, features: Tensor, attention: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B*T, 2w, G, G], the frames' attention, c [B, T, C] -> mean and log-variance of z, [B, T, D]."""
        shape = context.shape[:2]
        cells = self.down(features).flatten(2).transpose(1, 2)  # [N, cells, channels]
        hidden = self.whole(cells.flatten(1)).unflatten(0, shape) + self.context(context)
        mean, raw = wide(self.read_whole(hidden)).chunk(2, -1)
        if not self.dense:
            own = attention.assignments.flatten(0, 1).unflatten(-1, (2 * self.side, 2 * self.side))
            own = F.avg_pool2d(own, 2).flatten(2)  # [N, S, cells]
            masked = own[..., None].to(cells.dtype) * cells[:, None] * own.shape[1] ** 0.5
            hidden = self.own(masked.flatten(2)) + self.slot(attention.slots.flatten(0, 1)) + self.identity
            hidden = hidden + self.slot_context(context).flatten(0, 1)[:, None]
            slot_mean, slot_raw = wide(self.read_slot(hidden)).unflatten(0, shape).chunk(2, -1)
            mean = torch.cat([mean, slot_mean.flatten(2)], -1)
            raw = torch.cat([raw, slot_raw.flatten(2)], -1)
        return mean, bounded_log_variance(raw - 4.0, low=self.low)


class Decoder(nn.Module):
    """z -> features and centre of the pixel distribution; it reads nothing else.

    Each slot's piece, with the shared one, gives an appearance and a mask on the G x G grid. A softmax over slots turns
    the masks into shares of each cell; one upsampler for all makes pixels of the sum. The distribution is over
    `patch`^2 interleaved sub-images (`subimages`). The likelihood computes its parameters from the features with
    `head_weight`: they are the largest tensor of a step, and in this layout they are never rearranged.
    """

    gains: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.grid, self.slots = config.decoder_width, config.grid, config.num_slots
        self.pieces = Pieces.of(config)
        self.patch = config.image_size // (4 * config.grid)
        self.dense = config.codec == "dense"
        if self.dense:
            self.inputs = nn.Sequential(nn.Linear(config.latent_dim, config.mlp_dim), nn.LayerNorm(config.mlp_dim), nn.SiLU())
            self.expand = nn.Linear(config.mlp_dim, (self.grid // 2) ** 2 * 4 * width)
            first = [nn.SiLU(), ConvBlock(4 * width, 2 * width, stride=-2)]
        else:
            self.channels = 2 * width
            hidden = config.mlp_dim // 3 if config.codec == "slots" else config.mlp_dim // self.slots
            self.inputs = PerSlot(config, self.pieces.shared + self.pieces.slot, hidden, bias=False)
            self.identity = nn.Parameter(torch.randn(self.slots, hidden) * 0.1)
            self.norm = nn.Sequential(nn.LayerNorm(hidden), nn.SiLU())
            self.expand = PerSlot(config, hidden, self.grid**2 * (self.channels + 1), gain=SILU_GAIN * self.slots**0.5)
            first = [nn.SiLU()]
        self.layers = nn.Sequential(
            *first,
            Residual(2 * width),
            ConvBlock(2 * width, width, stride=-2),
            ConvBlock(width, width, stride=-2),
        )
        side = config.image_size // self.patch
        self.position = None
        if config.position:
            self.position = nn.Parameter(torch.zeros(width, side, side))
        channels = 10 * config.num_mixtures if config.likelihood == "logistic_mixture" else 3
        self.head = nn.Linear(width, self.patch**2 * channels, bias=False)
        gains = torch.ones(self.patch**2, channels // 10 or 1, 10 if channels >= 10 else 3)
        gains[..., 1:4] = config.location_gain
        self.register_buffer("gains", gains.view(-1, 1), persistent=False)

    @property
    def head_weight(self) -> Tensor:
        return self.head.weight * self.gains

    def forward(self, latent: Tensor, mean_frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z [B, T, D], mean frame [3, H, W] -> features at every pixel of a sub-image, centre, and masks.

        Features [B, T, h * w, F], centre [B, T, patch^2, 3, h, w], with h = H/patch and w = W/patch; masks [B, T, S, P].
        """
        shape = latent.shape[:2]
        if self.dense:
            cells = self.expand(self.inputs(latent)).view(shape.numel(), self.grid // 2, self.grid // 2, -1)
            masks = latent.new_ones(*shape, self.slots, self.grid**2) / self.slots
        else:
            shared, slots = latent.split([self.pieces.shared, self.slots * self.pieces.slot], -1)
            slots = slots.unflatten(-1, (self.slots, -1))
            inputs = torch.cat([shared[:, :, None].expand(-1, -1, self.slots, -1), slots], -1).flatten(0, 1)
            made = self.expand(self.norm(self.inputs(inputs) + self.identity)).unflatten(-1, (self.grid**2, -1))
            appearance, logits = made.split([self.channels, 1], -1)
            masks = wide(logits).softmax(1)
            cells = (masks.to(appearance.dtype) * appearance).sum(1).view(-1, self.grid, self.grid, self.channels)
            masks = masks[..., 0].unflatten(0, shape)
        features = self.layers(cells.movedim(-1, 1))  # channels-last
        features = features.add_(BIAS) if self.position is None else features + (BIAS + 10 * self.position)
        centre = subimages(mean_frame, self.patch).expand(*shape, -1, -1, -1, -1)
        return features.movedim(1, -1).reshape(*shape, -1, features.shape[1]), centre, masks


def subimages(frames: Tensor, patch: int) -> Tensor:
    """Frames [..., C, H, W] -> [..., patch^2, C, H/patch, W/patch]: i*patch + j has the pixels [i::patch, j::patch]."""
    return F.pixel_unshuffle(frames, patch).unflatten(-3, (-1, patch**2)).transpose(-4, -3)


def from_subimages(parts: Tensor) -> Tensor:
    """The inverse of `subimages`."""
    return F.pixel_shuffle(parts.transpose(-4, -3).flatten(-4, -3), math.isqrt(parts.shape[-4]))
