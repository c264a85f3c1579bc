"""Reconstruction quality by the documented protocol."""

from collections.abc import Iterable

import torch

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import evaluating, psnr
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel

PROTOCOL_STRIDE = 4
"""Windows start at the multiples of this in every held-out episode."""


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
