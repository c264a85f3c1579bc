"""Tokenizer: strided convolutions to a grid of discrete codes, and the mirrored decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.parts.layers import ConvBlock, in_float32

DEAD_BELOW = 0.5
"""A code that wins fewer encodings than this in 1 / (1 - decay) steps has died, and is moved onto an encoding."""
SAME = 1e-5
"""Codes whose squared distances differ by less than this a dimension, a hundred roundings, are equally near. Without
it two codes on one encoding, common where frames have a background, would be told apart by the order of a sum."""
REVIVED_SHARE = 64
"""At most one code in so many is moved at a step: a whole cohort at once would change what the tokens mean."""


@dataclass
class Tokens:
    """What the tokenizer says of N frames."""

    ids: Tensor
    """int64 [N, G*G]: the chosen codes, in [0, num_codes)."""
    codes: Tensor
    """[N, G*G, d]: the chosen codes themselves, without gradient."""
    encodings: Tensor
    """[N, G*G, d]: what was quantised, detached; feeds the codebook's moving average."""
    reconstruction: Tensor
    """[N, 3, H, W] in [-1, 1], not clamped."""
    commitment: Tensor
    """0-d: mean squared distance of the encodings to their codes."""


class Codebook(nn.Module):
    """Codes learned by an exponential moving average of the encodings they win (van den Oord et al. 2017, app. A.1).

    Straight-through gradient. The average moves once a step, in `update`, with the statistics of the whole global
    batch; codes that died move onto encodings of that batch.
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
        """Nearest codes by squared distance: [N, P, d] -> ids int64 [N, P], codes [N, P, d]; no gradient.

        Of equally near codes the first is taken, so that ids do not depend on rounding, nor on the number of processes.
        """
        with torch.no_grad():
            flat = encodings.detach().float().flatten(0, -2)
            scores = torch.addmm((self.codes**2).sum(1), flat, self.codes.t(), alpha=-2)
            near = scores <= scores.amin(1, keepdim=True) + SAME * flat.shape[1]
            # The least index, since a compiler makes ten times longer code of an argmax of what is true.
            order = torch.arange(len(self.codes), dtype=torch.int32, device=flat.device)
            ids = torch.where(near, order, len(order) - 1).amin(1).long()  # the last one for NaN
            # Before the first update the codes mean nothing: nothing is quantised, nothing is pulled to them.
            codes = torch.where(self.counts.any(), self.codes[ids].view_as(encodings), encodings)
            return ids.view(encodings.shape[:-1]), codes

    @torch.no_grad()
    def update(self, ids: Tensor, encodings: Tensor, candidates: Tensor, first: int) -> None:
        """Move the average by one step of all ranks together.

        Args:
            ids: int64 [M], the codes this rank's encodings chose.
            encodings: [M, d], in the order of the global batch from flat index `first` on.
            candidates: int64 [num_codes], global flat indices of the encodings that replace dead codes.
            first: the global flat index of this rank's first encoding.
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
        # The rarest code stands against the candidate that the codes serve worst, and so on down both lists.
        offered = statistics[:, dim + 1 :]
        worst_first = offered[torch.cdist(offered, self.codes).amin(1).argsort(descending=True, stable=True)]
        rarest_first = self.counts.argsort(stable=True)
        replaced = self.counts[rarest_first] < DEAD_BELOW * (1 - self.decay)
        replaced[max(1, num_codes // REVIVED_SHARE) :] = False
        replaced |= ~started
        self.counts[rarest_first] = self.counts[rarest_first].masked_fill(replaced, 1.0)
        self.sums[rarest_first] = torch.where(replaced[:, None], worst_first, self.sums[rarest_first])
        self.codes.copy_(self.sums / self.counts[:, None])


class Tokenizer(nn.Module):
    """Frame -> G x G codes -> frame, each frame by itself."""

    compiled = ("forward",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.tokenizer_width
        self.patch = config.image_size // (2 * config.grid)
        pixels = 3 * self.patch**2
        self.grid = config.grid
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

    def forward(self, frames: Tensor, mean_frame: Tensor) -> Tokens:
        """Tokenize standardised frames [N, 3, H, W], and reconstruct them around the mean frame [3, H, W]."""
        encodings = F.group_norm(self.encoder(frames).float(), 1).flatten(2).transpose(1, 2)
        ids, codes = in_float32(self.codebook)(encodings)
        passed = encodings + (codes - encodings).detach()
        grid = passed.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return Tokens(
            ids=ids,
            codes=codes,
            encodings=encodings.detach(),
            reconstruction=self.decoder(grid.contiguous(memory_format=torch.channels_last)).float() + mean_frame,
            commitment=F.mse_loss(encodings, codes),
        )
