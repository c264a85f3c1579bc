"""What a frame keeps of one that was seen before it: moved, and chosen place by place."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.model.draws import Draw
from aime_fast.model.parts.layers import CONTRAST, wide
from aime_fast.model.parts.subimages import subimages

START = -2.0
"""Where the logit of keeping starts: an eighth is kept, so the network draws from the first step."""
GAIN = 10.0
"""Size of a step of shares and shifts, relative to other parameters. AdamW's steps have the size of the learning rate,
and a share has far to go: with a gain of 1 it hardly moves in 200 steps."""


class Keeping(nn.Module):
    """For each place a share to keep of an older frame, and where in that frame to look.

    A linear map of the decoder's features of the new frame and the pixels of the old one, at each place of a sub-image.
    The share starts small and nothing moves. What is kept need not be drawn from z, however rare it is: an object that
    lies still, or a texture. The decoder draws the rest of the share only, so what z says of a place that is kept
    whole does not count.
    """

    centres: Tensor

    def __init__(self, width: int, patch: int, side: int) -> None:
        """Features of `width`, sub-images of every `patch`-th pixel, frames of `side` x `side` pixels."""
        super().__init__()
        self.register_buffer("centres", centres(side).float(), persistent=False)
        self.draws: tuple[Draw, ...] = (Draw("kept", "fraction"),)
        self.patch = patch
        self.choose = nn.Linear(width + 3 * patch**2, 3)
        nn.init.zeros_(self.choose.weight)
        self.choose.bias.data.copy_(torch.tensor([START / GAIN, 0.0, 0.0]))

    def forward(self, features: Tensor, kept: Tensor, mean_frame: Tensor) -> tuple[Tensor, Tensor]:
        """The share that each place keeps, [N, h*w, 1], and what that adds to the mean frame, [N, patch^2, 3, h, w].

        Features [N, h*w, F], old frames [N, 3, H, W], mean frame [3, H, W]. What is added, to the mean frame's
        sub-images, is the share times the difference of the moved old frame and the mean frame. An old frame that is
        the mean frame stands for none: of it nothing is kept.
        """
        difference = kept - mean_frame
        is_frame = (difference != 0).flatten(1).any(1)[:, None, None]
        pixels = F.pixel_unshuffle(difference * CONTRAST, self.patch)
        of_features, of_pixels = self.choose.weight.tensor_split([features.shape[-1]], 1)
        read = F.linear(pixels.to(features.dtype).flatten(2).mT, of_pixels, self.choose.bias)
        logit, shift = (GAIN * wide(read + F.linear(features, of_features))).split([1, 2], -1)
        share = logit.sigmoid() * is_frame
        shift = shift.mT.unflatten(2, pixels.shape[2:])
        found = moved(kept, F.interpolate(shift, scale_factor=self.patch), self.centres)
        added = share.mT.unflatten(2, pixels.shape[2:])[:, None] * subimages(found - mean_frame, self.patch)
        return share, added


def centres(side: int) -> Tensor:
    """Where the pixels of a frame lie, float64 [side, side, 2] (right, down), with its borders at -1 and 1."""
    line = (2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def moved(frames: Tensor, shift: Tensor, places: Tensor) -> Tensor:
    """Frames [N, 3, H, H] read bilinearly at each pixel plus `shift` [N, 2, H, H] (right, down) in pixels.

    places: the pixels' `centres`, of the dtype of `shift`, which the result has too. Beyond the border its pixels are
    repeated. Differentiable in frames and shift.
    """
    grid = torch.add(places, shift.movedim(1, -1), alpha=2 / len(places))
    return F.grid_sample(frames.to(grid.dtype), grid, padding_mode="border", align_corners=False)


def older(frames: Tensor, fraction: Tensor, nothing: Tensor) -> Tensor:
    """For each of the frames [B, T, 3, H, W] an older one of its window, or `nothing` [3, H, W].

    fraction: [B, T] in [0, 1). Frame t gets that at t - 1 - floor(2 fraction t), so 0 means the frame before, and
    from a half on there is none. Half of all frames then have to be drawn from z alone: if all could keep something, z
    would hold less of the frame, and predictions over many steps would be worse (docs/log.md).
    """
    batch, time = frames.shape[:2]
    order = torch.arange(time, device=frames.device)
    chosen = order - 1 - (2 * fraction * order).long()
    rows = torch.arange(batch, device=frames.device)[:, None] * time + chosen.clamp(min=0)
    found = frames.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, time))
    return torch.where((chosen >= 0)[..., None, None, None], found, nothing.to(frames.dtype))
