"""The frame encoder: trunk features, and the posterior q(z_t | x_t, c_t)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw
from aime_fast.model.parts.attention_schema import Attention
from aime_fast.model.parts.layers import ConvBlock, Residual, bounded_log_variance, wide
from aime_fast.model.parts.slots import PerSlot, Pieces

START = -4.0
"""Where raw log-variances start: wider samples would hide the small differences between frames from the decoder."""


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


class Posterior(nn.Module):
    """Diagonal Gaussian q(z_t | x_t, c_t), z_t = [shared, slot 1 .. slot S].

    The shared piece reads the whole feature map. A slot's piece reads the map weighted by the share of each cell that
    the slot owns, and the slot itself.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.draws: tuple[Draw, ...] = (Draw("latent", "normal", (config.kl_samples, config.latent_dim)),)
        pieces, slots = Pieces.of(config), config.num_slots
        width, self.side = 2 * config.encoder_width, config.grid // 2
        cells, hidden = self.side**2 * 2 * width, config.mlp_dim
        narrow = max(hidden // slots, 1)
        self.down = ConvBlock(width, 2 * width, stride=2)
        self.whole = nn.Linear(cells, hidden, bias=False)
        self.context = nn.Linear(config.context_dim, hidden, bias=False)
        self.read = nn.Sequential(nn.LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, 2 * pieces.shared))
        self.own = PerSlot(slots, cells, narrow)
        self.slot = nn.Linear(config.slot_dim, narrow, bias=False)
        self.slot_context = nn.Linear(config.context_dim, narrow, bias=False)
        self.norm = nn.Sequential(nn.LayerNorm(narrow), nn.SiLU())
        self.read_slots = PerSlot(slots, narrow, 2 * pieces.slot)

    def forward(self, features: Tensor, attention: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B*T, 2w, G, G], the frames' attention, c [B, T, C] -> mean and log-variance of z, [B, T, D]."""
        shape = context.shape[:2]
        cells = self.down(features).flatten(2).transpose(1, 2)  # [N, P/4, channels]
        hidden = self.whole(cells.flatten(1)) + self.context(context.flatten(0, 1))
        mean, raw = wide(self.read(hidden)).chunk(2, -1)
        seen = cells[:, None] * self._shares(attention)[..., None].to(cells.dtype)
        hidden = self.own(seen.flatten(2)) + self.slot(attention.slots.flatten(0, 1))
        hidden = hidden + self.slot_context(context.flatten(0, 1))[:, None]
        slot_mean, slot_raw = wide(self.read_slots(self.norm(hidden))).chunk(2, -1)
        mean, raw = (torch.cat(pair, -1) for pair in ((mean, slot_mean.flatten(1)), (raw, slot_raw.flatten(1))))
        return mean.unflatten(0, shape), bounded_log_variance(raw + START).unflatten(0, shape)

    def _shares(self, attention: Attention) -> Tensor:
        """Share of each 2 x 2 block of cells that a slot owns, [N, S, P/4], times sqrt(S): signals keep their size."""
        owned = attention.assignments.flatten(0, 1).unflatten(-1, (2 * self.side, 2 * self.side))
        return F.avg_pool2d(owned, 2).flatten(2) * owned.shape[1] ** 0.5
