"""What a frame keeps of one that was seen before it: moved, and chosen place by place."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.model.draws import Draw
from aime_fast.model.parts.layers import ConvBlock, wide

WIDTH = 16
"""Channels between reading and choosing."""
START = -2.0
"""Where the logit of keeping starts: an eighth is kept, so the network draws from the first step."""
GAIN = 10.0
"""Size of a step of shares and shifts, relative to other parameters. AdamW's steps have the size of the learning rate,
and a share has far to go: with a gain of 1 it hardly moves in 200 steps."""
CONTRAST = 4.0
"""Pixels are read as differences to the mean frame times this, which has about unit size."""


class Keeping(nn.Module):
    """For each place a share to keep of an older frame, and where in that frame to look.

    It reads the decoder's features of the new frame and the pixels of the old one, at the resolution of a sub-image.
    The share starts small and nothing moves. What is kept needs not be drawn from z, however rare it is: an object that
    lies still, or a texture.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.draws: tuple[Draw, ...] = (Draw("kept", "fraction"),)
        self.patch = patch
        self.read = ConvBlock(width + 3 * patch**2, WIDTH)
        self.choose = nn.Conv2d(WIDTH, 3, 1)
        nn.init.zeros_(self.choose.weight)
        self.choose.bias.data.copy_(torch.tensor([START / GAIN, 0.0, 0.0]))

    def forward(self, features: Tensor, kept: Tensor, mean_frame: Tensor) -> Tensor:
        """Features [N, F, h, w], old frames [N, 3, H, W], mean frame -> what they add to the mean frame, [N, 3, H, W].

        That is the share times the difference of the moved old frame and the mean frame.
        """
        pixels = F.pixel_unshuffle((kept - mean_frame) * CONTRAST, self.patch)
        chosen = GAIN * wide(self.choose(self.read(torch.cat([features, pixels.to(features.dtype)], 1))))
        share, shift = F.interpolate(chosen, scale_factor=self.patch).split([1, 2], 1)
        return share.sigmoid() * (moved(kept, shift) - mean_frame)


def moved(frames: Tensor, shift: Tensor) -> Tensor:
    """Frames [N, 3, H, W] read at each pixel plus `shift` [N, 2, H, W] (right, down) in pixels; differentiable."""
    height, width = frames.shape[2:]
    x, y = (
        (2 * torch.arange(n, device=frames.device, dtype=shift.dtype) + 1) / n - 1 for n in (width, height)
    )  # centres of pixels in [-1, 1]
    grid = torch.stack([x + shift[:, 0] * (2 / width), y[:, None] + shift[:, 1] * (2 / height)], -1)
    return F.grid_sample(frames.to(shift.dtype), grid, padding_mode="border", align_corners=False)


def older(frames: Tensor, fraction: Tensor, first: Tensor) -> Tensor:
    """For each of the frames [B, T, 3, H, W] an older one of its window, and `first` [3, H, W] for the first one.

    fraction: [B, T] in [0, 1); 0 means the frame before, near 1 the first of the window. Near frames are chosen more
    often than far ones: the distance is 1 + floor(fraction^2 t).
    """
    batch, time = frames.shape[:2]
    order = torch.arange(time, device=frames.device)
    chosen = (order - 1 - (fraction.square() * order).long()).clamp(min=0)
    rows = (torch.arange(batch, device=frames.device)[:, None] * time + chosen)[:, 1:].flatten()
    found = frames.flatten(0, 1).index_select(0, rows).unflatten(0, (batch, time - 1))
    return torch.cat([first.to(frames.dtype).expand(batch, 1, *first.shape), found], 1)
