"""Validation on all windows of the held-out episodes."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from aime_fast.data.batch import Batch
from aime_fast.evaluation.counterparts import filtering_draws
from aime_fast.evaluation.metrics import evaluating, psnr
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.training.engines.host_group import HostGroup
from aime_fast.training.meters import Meter
from aime_fast.training.prefetcher import on_device
from aime_fast.training.step import draw_key

VALIDATION_KEYS = 2**31
"""The draws of validation batch i have the key (seed, this + i), which no training step uses."""


@dataclass(frozen=True)
class Pictures:
    """One validation window on the CPU, for the picture grid."""

    originals: Tensor
    """[T, 3, H, W] in [-1, 1], like the reconstructions."""
    reconstructions: Tensor
    perceiver_reconstructions: Tensor
    attention_maps: Tensor
    """[T, S, G, G]."""


@torch.no_grad()
def validate(
    model: WorldModel, aggregator: LossAggregator, batches: Iterable[Batch], beta: float, seed: int, group: HostGroup
) -> tuple[dict[str, float], Pictures | None]:
    """Mean loss terms and PSNR over all windows, and the first window as pictures (rank 0 only).

    The ranks share the batches. Posterior and prior are sampled, with draws keyed by `seed`; the rest of the pass is as
    when filtering: no noise is carried into the next frame, so `kl_z` is lower than in training. `psnr` (dB, peak 1,
    per frame, then averaged) compares the decoder's mean at the posterior mean with the frames; `psnr_perceiver` does
    so with the tokenizer's reconstruction.
    """
    meter, pictures = Meter(), None
    with evaluating(model) as device:
        for index, batch in enumerate(batches):
            if index % group.world_size != group.rank:
                continue
            batch = on_device(batch, device)
            frames = batch.frames()
            draws = filtering_draws(model, draw_key(seed, VALIDATION_KEYS + index), *frames.shape[:2]).to(device)
            outputs = model(frames, batch.actions, draws)
            losses, _ = aggregator.compute_losses(outputs, beta=beta, batch=batch)
            shown = frames, model.reconstruct(outputs), outputs.perceiver_reconstructions
            losses["psnr"] = psnr(shown[1], frames).mean()
            losses["psnr_perceiver"] = psnr(shown[2], frames).mean()
            meter.add(losses, weight=len(batch))
            if index == 0:
                pictures = Pictures(*(x[0].cpu() for x in (*shown, outputs.attention_maps)))
    return meter.read(group.gather).means, pictures
