"""Figures of merit of pictures."""

import torch
from torch import Tensor


def psnr(prediction: Tensor, target: Tensor, peak: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each frame, 10 log10(peak^2 / MSE), in dB.

    `prediction` and `target`: [..., 3, H, W] of one shape, values in [0, peak]. Returns float32 [...], infinite for
    equal frames. The documented protocol averages it over frames: per frame first, then the mean.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"psnr compares equal shapes, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    error = (prediction.float() - target.float()).square().mean(dim=(-3, -2, -1))
    return 10.0 * torch.log10(peak**2 / error)


def unit_range(frames: Tensor) -> Tensor:
    """Frames from [-1, 1] to [0, 1]; what lies outside is clipped, as a screen would."""
    return ((frames + 1.0) * 0.5).clamp(0.0, 1.0)
