"""PSNR of frames and of a model's reconstructions, and the mode a model is evaluated in."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aime_fast.data.batch import Batch
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel

PROTOCOL_STRIDE = 4
"""Windows start at the multiples of this in every held-out episode."""


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


@torch.no_grad()
def reconstruction_psnr(model: WorldModel, windows: Iterable[Batch]) -> float:
    """PSNR in dB of the decoder's mean at the posterior mean, peak 1, per frame, then averaged over all frames.

    `windows` are batches such as `backend.evaluation_windows(PROTOCOL_STRIDE)`. The model keeps its mode. Raises
    ValueError if there are no windows.
    """
    values = []
    with evaluating(model) as device:
        for batch in windows:
            frames, actions = batch.to(device).frames(), batch.actions.to(device)
            values.append(psnr(model.reconstruct(model(frames, actions)), frames).flatten())
    if not values:
        raise ValueError("there are no windows to reconstruct")
    return torch.cat(values).double().mean().item()
