"""How well frames come back: the documented protocol, whatever the training made of it."""

from collections.abc import Iterable
from typing import Any

import torch

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import psnr, unit_range

PROTOCOL_STRIDE = 4
"""First frames of the windows are the multiples of this in every held-out episode."""


@torch.no_grad()
def reconstruction_psnr(model: Any, windows: Iterable[Batch]) -> float:
    """PSNR in dB of the decoder's mean at the posterior mean, peak 1, per frame, then averaged over all frames.

    `windows` are batches such as `backend.evaluation_windows(PROTOCOL_STRIDE)`; the model stays in the mode it was in.
    Raises ValueError where there are no windows.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, frames_seen = 0.0, 0
    for batch in windows:
        batch = batch.to(device)
        outputs = model(batch.observations.movedim(-1, 2), batch.actions)
        values = psnr(unit_range(model.reconstruct(outputs)), unit_range(outputs.observations))
        total += values.sum().item()
        frames_seen += values.numel()
    model.train(training)
    if not frames_seen:
        raise ValueError("there are no windows to reconstruct")
    return total / frames_seen
