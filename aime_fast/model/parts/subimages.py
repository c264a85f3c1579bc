"""Frames as interleaved sub-images, the layout in which the decoder's head produces parameters."""

import math

from torch import Tensor
from torch.nn import functional as F


def subimages(frames: Tensor, patch: int) -> Tensor:
    """Frames [..., C, H, W] -> [..., patch^2, C, H/patch, W/patch]: i*patch + j has the pixels [i::patch, j::patch]."""
    return F.pixel_unshuffle(frames, patch).unflatten(-3, (-1, patch**2)).transpose(-4, -3)


def from_subimages(parts: Tensor) -> Tensor:
    """The inverse of `subimages`."""
    return F.pixel_shuffle(parts.transpose(-4, -3).flatten(-4, -3), math.isqrt(parts.shape[-4]))
