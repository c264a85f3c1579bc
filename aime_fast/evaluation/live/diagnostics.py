"""Figures of a validation pass that say what each part of the model does, and how far it predicts."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import CEILING, psnr, ssim
from aime_fast.evaluation.worth.predictors import USED
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.parts.layers import previous
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.elbo import latent_terms

ACTIVE = 0.01
"""A coordinate of z is active if its posterior mean varies by more than this variance (Burda et al. 2016)."""
CONTEXT = 5
"""Frames that are seen before an open-loop prediction."""
HORIZONS = (1, 5, 10)
"""Frames ahead whose PSNR is reported, as far as windows allow."""


def part_figures(model: WorldModel, outputs: SequenceOutputs, batch: Batch) -> dict[str, Tensor]:
    """0-d figures of a batch by name: use of z, slots, components and actions.

    latent_mean, latent_std: mean over coordinates of |mean| and of the standard deviation, over the batch, of the
    posterior mean. posterior_std: mean standard deviation of q(z). active_dims: coordinates of z that vary.
    attention_entropy: of a slot's map, as a share of that of a uniform map, in [0, 1]. mask_overlap: mean over pairs of
    slots of the sum over cells of the smaller mask, over the mean size of a mask, in [0, 1]. active_components: with
    more than 2 % of the responsibilities. alpha: E[alpha], where sticks are shared.
    action_nats: see `worth_of_actions`.
    """
    mean = outputs.posterior_mean.float().flatten(0, 1)
    maps = outputs.attention.maps.float()
    values = {
        "latent_mean": mean.mean(0).abs().mean(),
        "latent_std": mean.std(0, correction=0).mean(),
        "posterior_std": (0.5 * outputs.posterior_log_var.float()).exp().mean(),
        "active_dims": (mean.var(0, correction=0) > ACTIVE).sum().float(),
        "attention_entropy": torch.special.entr(maps).sum(-1).mean() / math.log(max(maps.shape[-1], 2)),
        "mask_overlap": mask_overlap(outputs.masks.float()),
        "active_components": (latent_terms(outputs)["usage"] > USED).sum().float(),
    }
    if known := model.prior.measure():
        values["alpha"] = known.concentration.float()
    if batch.actions.shape[-1]:
        values["action_nats"] = worth_of_actions(model, outputs, batch)
    return values


def mask_overlap(masks: Tensor) -> Tensor:
    """How much the masks [..., S, P] of two slots cover the same cells, in [0, 1], 0-d; 0 for a single slot."""
    slots = masks.shape[-2]
    if slots < 2:
        return masks.new_zeros(())
    both = torch.minimum(masks[..., :, None, :], masks[..., None, :, :]).sum(-1)
    pairs = both.sum((-1, -2)) - both.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (pairs / (slots - 1) / masks.sum((-1, -2))).mean()


def worth_of_actions(model: WorldModel, outputs: SequenceOutputs, batch: Batch) -> Tensor:
    """What the actions tell the prior about z, in nats a frame, 0-d; near 0 or below where the model ignores them.

    The prior of the same latents is asked twice: with the window's actions and with those of the batch's next window.
    The difference of log p(z) is a mean over frames 1 .. T-1; nan for a single window, which has no other's actions.
    """
    if len(batch) < 2:
        return batch.actions.new_full((), torch.nan)
    other = batch.actions.roll(1, 0)
    start = model.dynamics.start_state(len(batch))
    latents = outputs.latents
    hidden, _ = model.dynamics(latents, other, start)
    taken = F.pad(other[:, :-1], (0, 0, 1, 0))
    before = previous(hidden, start[0][-1, 0])
    prior = model.prior(before, taken, previous(latents, model.prior.start_latent), outputs.draws)
    samples = outputs.samples
    gain = outputs.prior.log_prob(samples) - prior.log_prob(samples)
    return gain[:, 1:].mean() if gain.shape[1] > 1 else gain.new_zeros(())


def prediction_figures(model: WorldModel, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
    """PSNR in dB of frames predicted open loop, 0-d by name, and the imagined frames [B, T-c, 3, H, W].

    After c = `CONTEXT` frames one future is imagined from the recorded actions (`psnr_ahead_5` for five frames ahead),
    and one from those of the batch's next window (`psnr_ahead_5_other_actions`); `psnr_ahead_5_copy` copies the last
    frame seen. Nothing for windows of c frames or fewer.
    """
    frames, time = batch.frames(), batch.actions.shape[1]
    context = min(CONTEXT, time - 1)
    if context < 1:
        return {}, None
    state = model.observe(frames[:, :context], batch.actions[:, :context])
    actions = batch.actions[:, context - 1 : -1]
    imagined = model.decode(model.imagine(state, actions)).mean()
    shown = {"": imagined, "_copy": frames[:, context - 1 : context].expand_as(imagined)}
    if batch.actions.shape[-1] and len(batch) > 1:
        shown["_other_actions"] = model.decode(model.imagine(state, actions.roll(1, 0))).mean()
    values: dict[str, Tensor] = {}
    for ending, predicted in shown.items():
        ahead = psnr(predicted, frames[:, context:]).clamp_max(CEILING).mean(0)
        values |= {f"psnr_ahead_{h}{ending}": ahead[h - 1] for h in HORIZONS if h <= len(ahead)}
    values["ssim"] = ssim(model.decode(state).mean(), frames[:, :context]).mean()
    return values, imagined
