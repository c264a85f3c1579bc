"""Validation on all windows of the held-out episodes."""

from collections.abc import Iterable

import torch

from aime_fast.data.batch import Batch
from aime_fast.evaluation.live.diagnostics import part_figures, prediction_figures
from aime_fast.evaluation.live.snapshot import take_snapshot
from aime_fast.evaluation.metrics import CEILING, evaluating, psnr
from aime_fast.evaluation.worth.counterparts import filtering_draws
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.reporting.snapshot import Snapshot
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.training.engines.host_group import HostGroup
from aime_fast.training.meters import Meter
from aime_fast.training.prefetcher import on_device
from aime_fast.training.step import draw_key

VALIDATION_KEYS = 2**31
"""The draws of validation batch i have the key (seed, this + i), which no training step uses."""


@torch.no_grad()
def validate(
    model: WorldModel,
    aggregator: LossAggregator,
    batches: Iterable[Batch],
    beta: float,
    seed: int,
    group: HostGroup,
    step: int = 0,
) -> tuple[dict[str, float], Snapshot | None]:
    """Mean loss terms, PSNR and figures of the parts over all windows, and what the first batch shows (rank 0 only).

    The ranks share the batches. Posterior and prior are sampled, with draws keyed by `seed`; the rest of the pass is as
    when filtering: no noise is carried into the next frame, so `kl_z` is lower than in training. `psnr` (dB, peak 1,
    per frame, then averaged) compares the decoder's mean at the posterior mean with the frames; `psnr_perceiver` does
    so with the tokenizer's reconstruction, `psnr_mean_frame` with the mean training frame. Open-loop figures are of
    each rank's first batch (`aime_fast/evaluation/live/diagnostics.py`).
    """
    meter, ahead, snapshot = Meter(), Meter(), None
    with evaluating(model) as device:
        for index, batch in enumerate(batches):
            if index % group.world_size != group.rank:
                continue
            batch = on_device(batch, device)
            frames = batch.frames()
            draws = filtering_draws(model, draw_key(seed, VALIDATION_KEYS + index), *frames.shape[:2]).to(device)
            outputs = model(frames, batch.actions, draws)
            losses, _ = aggregator.compute_losses(outputs, beta=beta, batch=batch)
            losses["psnr"] = psnr(model.reconstruct(outputs), frames).mean()
            losses["psnr_perceiver"] = psnr(outputs.perceiver_reconstructions, frames).mean()
            losses["psnr_mean_frame"] = psnr(model.mean_frame.expand_as(frames), frames).clamp_max(CEILING).mean()
            losses |= part_figures(model, outputs, batch)
            meter.add(losses, weight=len(batch))
            if index == group.rank:
                predicted, imagined = prediction_figures(model, batch)
                if predicted:
                    ahead.add(predicted, weight=len(batch))
                snapshot = take_snapshot(model, outputs, imagined, step) if index == 0 else None
    return meter.read(group.gather).means | ahead.read(group.gather).means, snapshot
