"""What a frame keeps of one that was seen before it: moved, and chosen place by place."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from aime_fast.model.draws import Draw
from aime_fast.model.parts.layers import CONTRAST, wide
from aime_fast.model.parts.subimages import subimages

START = -2.0
"""Where the logit of keeping starts: an eighth is kept, so the network draws from the first step."""
GAIN = 10.0
"""Size of a step of shares and shifts, and of the features of what is kept, relative to other parameters. AdamW's steps
have the size of the learning rate, and a share has far to go: with a gain of 1 it hardly moves in 200 steps."""


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
        self.of_features, self.of_pixels = nn.Linear(width, 3, bias=False), nn.Linear(3 * patch**2, 3)
        nn.init.zeros_(self.of_features.weight)
        nn.init.zeros_(self.of_pixels.weight)
        self.instead = nn.Parameter(torch.zeros(width))  # features of what is kept
        self.of_pixels.bias.data.copy_(torch.tensor([START / GAIN, 0.0, 0.0]))

    def forward(self, features: Tensor, place: Tensor, kept: Tensor, mean_frame: Tensor) -> tuple[Tensor, Tensor]:
        """Features with what is drawn beside what is kept, [N, h*w, F], and what is kept, [N, patch^2, 3, h, w].

        Features [N, h*w, F], to which those of the `place` [h*w, F] are added; old frames [N, 3, H, W], mean frame
        [3, H, W]. What is kept is the share times the difference of the moved old frame and the mean frame, and adds to
        the mean frame's sub-images. An old frame that is the mean frame stands for none: of it nothing is kept.
        """
        difference = kept - mean_frame
        is_frame = difference.flatten(1).any(1)[:, None, None]
        pixels = F.pixel_unshuffle(difference * CONTRAST, self.patch)
        weight, bias = (x.to(features.dtype) for x in (self.of_pixels.weight, self.of_pixels.bias))
        each = weight.expand(len(kept), -1, -1)
        of_pixels = torch.baddbmm(bias[:, None], each, pixels.to(features.dtype).flatten(2)).mT
        drawn, share, shift = _Choice.apply(
            features, self.of_features.weight, of_pixels, is_frame, GAIN * self.instead, place
        )
        share, shift = (x.mT.unflatten(2, pixels.shape[2:]) for x in (share, shift))
        found = moved(kept, F.interpolate(shift, scale_factor=self.patch), self.centres)
        return drawn, share[:, None] * subimages(found - mean_frame, self.patch)


class _Choice(torch.autograd.Function):
    """(1 - share) * features + share * instead + place, the share and the shift.

    The last two are read from the features and `of_pixels`. The features are the largest tensor of the decoder:
    autograd would pass over their gradient twice as often.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, of_pixels: Tensor, is_frame: Tensor, instead: Tensor, place: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        choice = GAIN * wide(of_pixels + features @ weight.to(features.dtype).mT)
        share = choice[..., :1].sigmoid() * is_frame
        rest = 1 - share
        ctx.save_for_backward(features, weight, share, rest, instead)
        drawn = torch.addcmul(place, features, rest)
        return drawn.addcmul_(share, instead), share, choice[..., 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_drawn: Tensor, of_share: Tensor, of_shift: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, share, rest, instead = ctx.saved_tensors
        of_place, of_instead = of_drawn.sum(0), (share * of_drawn).sum((0, 1))
        of_share = of_share + ((instead - features) * of_drawn).sum(-1, keepdim=True)
        of_choice = GAIN * torch.cat([of_share * share * rest, of_shift], -1).to(features.dtype)
        of_weight = (of_choice.mT @ features).sum(0)  # frame by frame: one small product over all has one tile
        of_features = torch.addcmul(of_choice @ weight.to(features.dtype), of_drawn, rest)
        return of_features.to(features.dtype), of_weight.to(weight.dtype), of_choice, None, of_instead, of_place


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
