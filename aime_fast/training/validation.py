"""Validation: every window of the held-out episodes, the same way each time."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import psnr, unit_range
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.training.engines.host_group import HostGroup
from aime_fast.training.meters import Meter
from aime_fast.training.prefetcher import on_device
from aime_fast.training.step import noise_key
from aime_kernels import normalise_frames

VALIDATION_KEYS = 2**31
"""Draws of validation batch i are keyed (seed, this + i): no training step comes here."""


@dataclass(frozen=True)
class Pictures:
    """One validation window on the CPU, as the picture grid takes it."""

    originals: Tensor
    """[T, 3, H, W] in [-1, 1], as the others."""
    reconstructions: Tensor
    perceiver_reconstructions: Tensor
    attention_maps: Tensor
    """[T, S, G, G]."""


@torch.no_grad()
def validate(
    model: Any, aggregator: LossAggregator, batches: Iterable[Batch], beta: float, seed: int, peers: HostGroup
) -> tuple[dict[str, float], Pictures | None]:
    """Means over all windows of the loss terms and of PSNR, and the first windows as pictures (rank 0).

    The ranks share the batches out among them. Loss terms are estimated with draws keyed by `seed`, so that their
    Monte Carlo samples are as in training; `psnr` (dB, peak 1, per frame, then averaged) is that of the decoder's mean
    at the posterior mean, `psnr_perceiver` that of the tokenizer's reconstruction.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    meter, pictures = Meter(), None
    for index, batch in enumerate(batches):
        if index % peers.world_size != peers.rank:
            continue
        batch = on_device(batch, device)
        frames = normalise_frames(batch.observations)
        draws = model.draws(noise_key(seed, VALIDATION_KEYS + index), *frames.shape[:2]).to(device)
        outputs = model(frames, batch.actions, draws=draws)
        losses, _ = aggregator.compute_losses(outputs, beta=beta)
        shown = (frames, model.reconstruct(outputs), outputs.perceiver_reconstructions)
        losses["psnr"] = psnr(unit_range(shown[1]), unit_range(frames)).mean()
        losses["psnr_perceiver"] = psnr(unit_range(shown[2]), unit_range(frames)).mean()
        meter.add(losses, weight=len(batch))
        if index == 0:
            pictures = Pictures(*(x[0].cpu() for x in (*shown, outputs.attention_maps)))
    model.train(training)
    return meter.read(peers.gather).means, pictures
