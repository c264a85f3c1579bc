"""How well single frames are reconstructed, and what the model pays for them in nats."""

from collections.abc import Mapping

import torch
from torch import Tensor

from aime_fast.evaluation.metrics import CEILING, Measure, evaluating, moving_psnr, psnr
from aime_fast.evaluation.windows import Windows
from aime_fast.evaluation.worth.counterparts import filtering_draws
from aime_fast.evaluation.worth.parts import kl_of_frames
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.elbo import pixel_terms

KL, NATS, BITS = "kl_z", "nats", "bits_per_dim"
EVERY = 4
"""Measures that take longer than PSNR see each window's last frame and every fourth before it."""


@torch.no_grad()
def judge_reconstruction(
    model: WorldModel, windows: Windows, measures: Mapping[str, Measure] | None = None, costs: bool = False
) -> dict[str, Tensor]:
    """Means over the frames of each window, float64 [W], by name. The model keeps its mode.

    `psnr` in dB of the decoder's mean at the posterior mean, at most `CEILING`; `moving`, the same over the pixels that
    move; and `measures`, of every fourth frame. With `costs` also what `frame_costs` gives, from sampled z.
    """
    found: dict[str, list[Tensor]] = {}
    with evaluating(model) as device:
        for rows, batch in windows.parts():
            on_device = batch.to(device)
            frames = on_device.frames()
            draws = filtering_draws(model, int(rows[0]), *frames.shape[:2]).to(device) if costs else None
            outputs = model(frames, on_device.actions, draws)
            made = model.reconstruct(outputs)
            moving = moving_psnr(made, frames, windows.moving(rows, on_device))
            values = {"psnr": psnr(made, frames).clamp_max(CEILING), "moving": moving.clamp_max(CEILING)}
            last = slice((frames.shape[1] - 1) % EVERY, None, EVERY)
            values |= {name: measure(made[:, last], frames[:, last]) for name, measure in (measures or {}).items()}
            values |= frame_costs(outputs) if costs else {}
            for name, value in values.items():
                found.setdefault(name, []).append(value.nanmean(1).double().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def frame_costs(outputs: SequenceOutputs) -> dict[str, Tensor]:
    """What each frame costs, [B, T]: KL of z in nats, the negative ELBO in nats, the same in bits per data dimension.

    Monte Carlo estimates over the outputs' samples. The negative ELBO is -log p(x | z) and all KL terms of the prior.
    """
    dimensions, kl = outputs.pixels[0, 0].numel(), kl_of_frames(outputs)
    nats_per_dimension = pixel_terms(outputs, torch.ones_like(kl), 0.0)[1]
    nats = nats_per_dimension * dimensions + kl + sum(outputs.prior.kl_terms().values())
    return {KL: kl, NATS: nats, BITS: nats / dimensions / torch.log(nats.new_tensor(2.0))}
