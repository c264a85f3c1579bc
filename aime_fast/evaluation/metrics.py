"""Image metrics, and the mode a model is evaluated in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
    if prediction.shape != target.shape:
        raise ValueError(f"psnr compares equal shapes, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    error = (unit_range(prediction.float()) - unit_range(target.float())).square().mean(dim=(-3, -2, -1))
    return -10.0 * error.log10()


def unit_range(frames: Tensor) -> Tensor:
    """Frames from [-1, 1] to [0, 1]; values outside are clipped."""
    return ((frames + 1.0) * 0.5).clamp(0.0, 1.0)
