"""The decoder's features of p(x_t | z_t): an appearance and a mask of each slot, and one upsampler for all."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aime_fast.config import ModelConfig
from aime_fast.model.parts.keeping import Keeping
from aime_fast.model.parts.layers import SILU_GAIN, ConvBlock, Residual, wide
from aime_fast.model.parts.slots import PerSlot, Pieces
from aime_fast.model.parts.subimages import subimages

BIAS = 0.25
"""Added to every feature that the decoder's head reads. It replaces a bias of the head, which would cost two passes
over the largest tensor of a step. Without either the likelihood learns more slowly (docs/log.md)."""
PLACE_GAIN = 10.0
"""Size of a step of the features that belong to a place, relative to other parameters."""
LOCATION_GAIN = 0.05
"""Size of a step of the locations, relative to scales and weights. AdamW's steps have the size of the learning rate
whatever the gradient: with a gain of 1 the brightness of the whole frame swings about its optimum (docs/log.md)."""


class Decoder(nn.Module):
    """z -> features and centre of the pixel distribution, and the slots' masks; it reads nothing else of the frame.

    Each slot's piece of z, with the shared one, gives an appearance and a mask on the G x G grid. A softmax over slots
    makes the masks shares of each cell, and one upsampler turns the sum of the appearances into pixels. Features that
    depend on the place alone are added at the end: the network need not make what is the same in all frames.
    The centre is the mean frame, and at each place some of a frame seen before (`Keeping`): as much less is drawn.

    The distribution is over `patch`^2 interleaved sub-images (`subimages`). The likelihood computes its parameters
    from the features with `head_weight`: they are the largest tensor of a step, and are never rearranged.
    """

    gains: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.grid, self.slots = config.decoder_width, config.grid, config.num_slots
        self.patch, self.pieces, self.channels = config.image_size // (4 * self.grid), Pieces.of(config), 2 * width
        hidden, side = max(config.mlp_dim // self.slots, 1), 4 * self.grid
        self.inputs = PerSlot(self.slots, self.pieces.shared + self.pieces.slot, hidden)
        self.norm = nn.Sequential(nn.LayerNorm(hidden), nn.SiLU())
        gain = SILU_GAIN * self.slots**0.5  # for the mean over slots
        self.expand = PerSlot(self.slots, hidden, self.grid**2 * (self.channels + 1), gain)
        self.layers = nn.Sequential(
            nn.SiLU(),
            Residual(2 * width),
            ConvBlock(2 * width, width, stride=-2),
            ConvBlock(width, width, stride=-2),
        )
        self.keeping = Keeping(width, self.patch, config.image_size)
        self.place = nn.Parameter(torch.zeros(width, side, side))
        channels = 10 * config.num_mixtures if config.likelihood == "logistic_mixture" else 3
        self.head = nn.Linear(width, self.patch**2 * channels, bias=False)
        gains = torch.full((self.patch**2, channels), LOCATION_GAIN)
        if config.likelihood == "logistic_mixture":  # each component: a weight, 3 locations, 3 scales, 3 couplings
            gains.unflatten(1, (-1, 10))[..., [0, 4, 5, 6, 7, 8, 9]] = 1.0
        self.register_buffer("gains", gains.view(-1, 1), persistent=False)

    @property
    def head_weight(self) -> Tensor:
        """Weight [patch^2 * channels, F] from features to the parameters of the distribution."""
        return self.head.weight * self.gains

    def forward(
        self, latent: Tensor, mean_frame: Tensor, without: Sequence[int] = (), kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z [B, T, D], mean frame [3, H, W] -> features at every pixel of a sub-image, centre, and masks.

        Features [B, T, h * w, F], centre [B, T, patch^2, 3, h, w], with h = H/patch and w = W/patch. Masks [B, T, S, P]
        sum to 1 over the slots. The slots of `without` are left out: the others share their cells. `kept`
        [B, T, 3, H, W] in [-1, 1] are frames seen before; without them nothing is kept.
        """
        shape = latent.shape[:2]
        cells, masks = self._compose(latent.flatten(0, 1), without)
        features = self.layers(cells.movedim(-1, 1)).movedim(1, -1).flatten(1, 2)  # channels-last: a view
        place = (BIAS + PLACE_GAIN * self.place).flatten(1).mT
        centre = subimages(mean_frame, self.patch).expand(*shape, -1, -1, -1, -1)
        if kept is None:
            features = place + features
        else:
            features, added = self.keeping(features, place, kept.flatten(0, 1), mean_frame)
            centre = centre + added.unflatten(0, shape)
        return features.unflatten(0, shape), centre, masks.unflatten(0, shape)

    def _compose(self, latent: Tensor, without: Sequence[int]) -> tuple[Tensor, Tensor]:
        """z [N, D] -> the slots' appearances, added by their masks [N, G, G, 2w], and the masks [N, S, P]."""
        shared, own = self.pieces.split(latent, self.slots)
        inputs = torch.cat([shared[:, None].expand(-1, self.slots, -1), own], -1)
        made = self.expand(self.norm(self.inputs(inputs))).unflatten(-1, (self.grid**2, -1))
        appearance, raw = made.split([self.channels, 1], -1)
        logits = wide(raw)[..., 0]
        if without:
            logits = logits.index_fill(1, torch.tensor(without, device=logits.device), -torch.inf)
        masks = logits.softmax(1)
        cells = (masks[..., None].to(appearance.dtype) * appearance).sum(1)
        return cells.view(-1, self.grid, self.grid, self.channels), masks
