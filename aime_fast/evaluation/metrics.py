"""PSNR and SSIM of frames, PSNR over the pixels that move, and the mode a model is evaluated in."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

CEILING = 10 * math.log10(12 * 255**2)
"""Largest PSNR that is counted, 58.9 dB: that of rounding to 256 levels. Equal frames would make a mean infinite."""
MOVING_LEVELS = 10
"""A pixel moves if a channel differs by more than this many levels from the episode's mean frame."""

Measure = Callable[[Tensor, Tensor], Tensor]
"""Compares predicted with true frames, both [..., 3, H, W] in [-1, 1], and gives a value of each frame, [...]."""
SIMILAR_AT_ONCE = 64
"""Frames whose structural similarity is computed at once."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Set evaluation mode inside the context; gives the device of the model's parameters."""
    training = model.training
    model.eval()
    try:
        yield next(model.parameters()).device
    finally:
        model.train(training)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame, 10 log10(1 / MSE) of frames in [0, 1], in dB.

    `prediction` and `target`: [..., 3, H, W] of one shape, values in [-1, 1]; values outside are clipped. Returns
    float32 [...], infinite for equal frames. Averages over frames are means of these values.
    """
    return -10.0 * squared_error(prediction, target).mean(dim=(-3, -2, -1)).log10()


def moving_psnr(prediction: Tensor, target: Tensor, moving: Tensor) -> Tensor:
    """`psnr` over the pixels of the target that move, bool [..., H, W]; nan for frames in which none moves."""
    error = squared_error(prediction, target).mean(dim=-3)
    return -10.0 * ((error * moving).sum((-2, -1)) / moving.sum((-2, -1))).log10()


def moving_pixels(frames: Tensor, mean_frame: Tensor) -> Tensor:
    """Which pixels of frames [..., 3, H, W] differ from the episode's mean frame, in levels: bool [..., H, W]."""
    return ((frames - mean_frame).abs() > MOVING_LEVELS).any(dim=-3)


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each frame, at most 1: of frames [..., 3, H, W] in [-1, 1], float32 [...].

    Windows are Gaussian with a deviation of 1.5 pixels; a mean over pixels and channels (Wang et al. 2004).
    """
    # Slow to import.
    from torchmetrics.functional.image import structural_similarity_index_measure

    parts = [unit_range(x.float()).reshape(-1, *x.shape[-3:]).split(SIMILAR_AT_ONCE) for x in (prediction, target)]
    found = []
    for pair in zip(*parts, strict=True):
        # All frames as channels of one image: a CPU's convolution is three times as fast.
        ours, theirs = (x.flatten(0, 1)[None] for x in pair)
        _, image = structural_similarity_index_measure(
            ours, theirs, data_range=1.0, reduction="none", return_full_image=True
        )
        found.append(image.view(*pair[0].shape).mean((-3, -2, -1)))
    return torch.cat(found).view(prediction.shape[:-3])


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of every pixel and channel of frames in [-1, 1], after both are mapped to [0, 1] and clipped."""
    if prediction.shape != target.shape:
        raise ValueError(f"psnr compares equal shapes, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    return (unit_range(prediction.float()) - unit_range(target.float())).square()


def unit_range(frames: Tensor) -> Tensor:
    """Frames from [-1, 1] to [0, 1]; values outside are clipped."""
    return ((frames + 1.0) * 0.5).clamp(0.0, 1.0)
