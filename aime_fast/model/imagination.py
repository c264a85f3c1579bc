"""Open-loop prediction: the only loop over time, without gradients."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aime_fast.errors import UserError
from aime_fast.model.draws import UNIFORM_MARGIN

if TYPE_CHECKING:
    from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder


def imagine(
    model: "DPGMMVariationalRecurrentAutoencoder", observations: Tensor, actions: Tensor, samples: int, key: int
) -> Tensor:
    """See `DPGMMVariationalRecurrentAutoencoder.imagine`."""
    known = observations.shape[1]
    if known < 1 or actions.shape[1] < known:
        raise UserError(f"imagine needs a context frame and at least as many actions as it; got {known} frames")
    was_training = model.training
    model.eval()
    try:
        return _roll(model, observations, actions, samples, torch.Generator().manual_seed(key))
    finally:
        model.train(was_training)


def _roll(
    model: "DPGMMVariationalRecurrentAutoencoder",
    observations: Tensor,
    actions: Tensor,
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    batch, known = observations.shape[:2]
    filtered = model(observations, actions[:, :known])
    hidden, state = model.dynamics(
        filtered.latents,
        filtered.context,
        filtered.attention.state,
        actions[:, :known],
        model.dynamics.start_state(batch),
    )
    hidden, context, latent = (
        x[:, -1:].repeat_interleave(samples, 0) for x in (hidden, filtered.context, filtered.latents)
    )
    no_attention = filtered.attention.state.new_zeros(batch * samples, 1, model.config.attention_state_dim)
    state = (state[0].repeat_interleave(samples, 1), state[1].repeat_interleave(samples, 1))
    future = actions[:, known:].repeat_interleave(samples, 0)
    sticks = (batch * samples, 1, model.config.max_components - 1)
    latents = []
    for step in range(actions.shape[1] - known + 1):
        uniform = torch.rand(sticks, generator=generator).clamp(UNIFORM_MARGIN, 1 - UNIFORM_MARGIN)
        latent = model.prior(hidden, context, latent, uniform.to(hidden.device)).sample(generator)
        latents.append(latent)
        if step < future.shape[1]:
            context = torch.zeros_like(context)
            hidden, state = model.dynamics(latent, context, no_attention, future[:, step : step + 1], state)
    imagined = torch.cat(latents, dim=1)
    frames = model.decode(imagined, model.predictor(imagined)).mean()
    return frames.view(batch, samples, len(latents), *frames.shape[1:])
