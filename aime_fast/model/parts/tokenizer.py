"""Tokenizer: strided convolutions to a grid of discrete codes, and the mirrored decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.draws import Draw
from aime_fast.model.parts.layers import ConvBlock, in_float32, wide
from aime_kernels import distance_to_codes, nearest_codes

DEAD_BELOW = 0.5
"""A code that wins fewer encodings than this in 1 / (1 - decay) steps is dead and is moved onto an encoding."""
REVIVED_SHARE = 64
"""At most one code in this many is moved in one step: moving many at once would change the meaning of the tokens."""


@dataclass
class Tokens:
    """The tokenizer's codes of [B, T] frames; P = G*G grid cells."""

    ids: Tensor  # int64 [B, T, P]: indices of the chosen codes, in [0, num_codes)
    codes: Tensor  # [B, T, P, d]: the chosen codes, without gradient
    encodings: Tensor  # [B, T, P, d]: the vectors that were quantised, detached; the codebook averages them
    reconstruction: Tensor  # [B, T, 3, H, W] in about [-1, 1], not clamped
    commitment: Tensor  # 0-d: mean squared distance of the encodings to their codes


class Codebook(nn.Module):
    """Codes learned by an exponential moving average of the encodings they win (van den Oord et al. 2017, app. A.1).

    `update` moves the average once a step by the whole global batch. Dead codes move onto encodings of that batch.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        codes = torch.randn(num_codes, dim)
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.zeros(num_codes))
        self.register_buffer("sums", codes.clone())

    def forward(self, encodings: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest codes by squared distance: [..., P, d] -> ids int64 [..., P], codes [..., P, d]; no gradient.

        Of equally near codes the first is taken, so that ids depend neither on rounding nor on the number of processes.
        """
        with torch.no_grad():
            ids = nearest_codes(wide(encodings.detach()).flatten(0, -2), self.codes)
            # Before the first update the codes are random: quantising by them would only destroy information.
            codes = torch.where(self.counts.any(), self.codes[ids].view_as(encodings), encodings)
            return ids.view(encodings.shape[:-1]), codes

    @torch.no_grad()
    def update(self, ids: Tensor, encodings: Tensor, candidates: Tensor, first: int) -> None:
        """Move the average by one step of all ranks together.

        This rank's `encodings` [M, d], of which `first` is the global flat index of the first, chose the codes `ids`,
        int64 [M]. `candidates`, int64 [num_codes], are global indices of the encodings that replace dead codes.
        """
        num_codes, dim = self.codes.shape
        statistics = encodings.new_zeros(num_codes, 2 * dim + 1)
        statistics[:, :dim].index_add_(0, ids, encodings)
        statistics[:, dim].index_add_(0, ids, statistics.new_ones(len(ids)))
        local = candidates - first
        mine = (local >= 0) & (local < len(ids))
        statistics[:, dim + 1 :] = torch.where(mine[:, None], encodings[local.clamp(0, len(ids) - 1)], 0.0)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(statistics)
        started = self.counts.any()
        self.sums.lerp_(statistics[:, :dim], 1 - self.decay)
        self.counts.lerp_(statistics[:, dim], 1 - self.decay)
        # The rarest code moves to the candidate farthest from all codes, the second rarest to the next, and so on.
        offered = statistics[:, dim + 1 :]
        farthest_first = offered[distance_to_codes(offered, self.codes).argsort(descending=True, stable=True)]
        rarest_first = self.counts.argsort(stable=True)
        replaced = self.counts[rarest_first] < DEAD_BELOW * (1 - self.decay)
        few = torch.arange(num_codes, device=replaced.device) < max(1, num_codes // REVIVED_SHARE)
        replaced = (replaced & few) | ~started
        self.counts[rarest_first] = self.counts[rarest_first].masked_fill(replaced, 1.0)
        self.sums[rarest_first] = torch.where(replaced[:, None], farthest_first, self.sums[rarest_first])
        self.codes.copy_(self.sums / self.counts[:, None])


class Tokenizer(nn.Module):
    """Frame -> G x G codes -> frame, each frame by itself; straight-through gradient."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.tokenizer_width
        self.patch = config.image_size // (2 * config.grid)
        pixels = 3 * self.patch**2
        self.grid = config.grid
        self.draws: tuple[Draw, ...] = (Draw("code_candidates", "cells", (config.num_codes,), cells=config.grid**2),)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(self.patch),
            ConvBlock(pixels, width),
            ConvBlock(width, 2 * width, stride=2),
            nn.Conv2d(2 * width, config.code_dim, 1),
        )
        self.codebook = Codebook(config.num_codes, config.code_dim, config.codebook_decay)
        self.decoder = nn.Sequential(
            ConvBlock(config.code_dim, 2 * width),
            ConvBlock(2 * width, width, stride=-2),
            nn.Conv2d(width, pixels, 3, padding=1),
            nn.PixelShuffle(self.patch),
        )

    def forward(self, frames: Tensor, mean_frame: Tensor, shape: torch.Size) -> Tokens:
        """Tokenize standardised frames [B*T, 3, H, W] of `shape` (B, T); reconstruct them around the mean [3, H, W]."""
        encodings, ids, codes = self.encode(frames, shape)
        passed = encodings + (codes - encodings).detach()
        grid = passed.transpose(2, 3).reshape(len(frames), -1, self.grid, self.grid)
        reconstruction = wide(self.decoder(grid.contiguous(memory_format=torch.channels_last))) + mean_frame
        commitment = F.mse_loss(encodings, codes)
        return Tokens(ids, codes, encodings.detach(), reconstruction.unflatten(0, shape), commitment)

    def encode(self, frames: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Standardised frames [B*T, 3, H, W] -> encodings [B, T, P, d], ids int64 [B, T, P], codes [B, T, P, d]."""
        normalised = F.group_norm(wide(self.encoder(frames)), 1)
        encodings = normalised.reshape(*shape, normalised.shape[1], self.grid**2).transpose(2, 3)
        ids, codes = in_float32(self.codebook)(encodings)
        return encodings, ids, codes
