"""Takes the `Snapshot` of a run from a validation pass."""

import numpy as np
import torch
from torch import Tensor

from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.priors.sticks import expected_weights
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.reporting.figures import pixels
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
