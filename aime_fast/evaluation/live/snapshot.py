"""Takes what figures show from a model: the `Snapshot` of a validation, and the `Prediction` of one window."""

import numpy as np
import torch
from torch import Tensor

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import CEILING, psnr
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.priors.sticks import expected_weights
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.reporting.figures import pixels
from aime_fast.reporting.prediction import Prediction
from aime_fast.reporting.snapshot import Snapshot


@torch.no_grad()
def take_snapshot(model: WorldModel, outputs: SequenceOutputs, imagined: Tensor | None, step: int) -> Snapshot:
    """Of a batch's pass; `imagined` [B, T-c, 3, H, W] are its predicted frames, None where windows are too short."""
    grid = (model.config.grid, model.config.grid)
    _, log_r = outputs.prior.log_prob_and_responsibilities(outputs.posterior_mean[:, :, None])
    shares = log_r.exp()[:, :, 0].float()
    latents = outputs.posterior_mean.float().flatten(0, 1)
    own = shares.flatten(0, 1)
    centres_of = (own.T @ latents) / own.sum(0).clamp_min(1e-6)[:, None]
    measure, concentration = _measure(model)
    codes = outputs.next_token_logits.shape[-1]
    return Snapshot(
        step=np.array(step),
        frames=pixels(outputs.observations[0]),
        reconstructions=pixels(model.reconstruct(outputs)[0]),
        token_reconstructions=pixels(outputs.perceiver_reconstructions[0]),
        imagined=pixels((outputs.observations[:, :0] if imagined is None else imagined)[0]),
        maps=_half(outputs.attention_maps[0]),
        masks=_half(outputs.masks[0].unflatten(-1, grid)),
        centres=outputs.attention.centres[0].float().cpu().numpy(),
        weights=outputs.mixture_weights[0].float().cpu().numpy(),
        responsibilities=shares[0].cpu().numpy(),
        usage=own.mean(0).cpu().numpy(),
        component_frames=pixels(model.likelihood(centres_of[None]).mean()[0]),
        measure=measure,
        concentration=concentration,
        latents=_half(latents),
        component=own.argmax(-1).cpu().numpy().astype(np.int16),
        code_counts=torch.bincount(outputs.token_info.ids.flatten(), minlength=codes).cpu().numpy(),
    )


@torch.no_grad()
def take_prediction(model: WorldModel, window: Batch, context: int, samples: int, key: int) -> Prediction:
    """Of a batch of one window: its first `context` frames are filtered, `samples` futures imagined from its actions.

    `key` is the seed of the futures. Their PSNR is at most `CEILING`, as in every table.
    """
    frames = window.frames()
    state = model.observe(frames[:, :context], window.actions[:, :context])
    ahead = model.imagine(state, window.actions[:, context - 1 : -1], samples=samples, key=key)
    filtered, imagined = (model.decode(part).mean() for part in (state, ahead))
    made = torch.cat([filtered.expand(samples, -1, -1, -1, -1), imagined], 1)
    return Prediction(
        truth=pixels(frames[0]),
        made=np.stack([pixels(future) for future in made]),
        psnr=psnr(made, frames.expand_as(made)).clamp_max(CEILING).cpu().numpy(),
        context=context,
    )


def _half(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy().astype(np.float16)


def _measure(model: WorldModel) -> tuple[np.ndarray, np.ndarray]:
    known = model.prior.measure()
    if known is None:
        return np.zeros((2, 0), np.float32), np.full(2, np.nan, np.float32)
    # Under Beta(1, alpha) a stick's mean is 1 / (1 + alpha).
    before = expected_weights(torch.full_like(known.weights[1:], 1 / (1 + float(known.start))))
    weights = torch.stack([known.weights, before]).float().cpu().numpy()
    return weights, np.array([float(known.concentration), float(known.start)], np.float32)
