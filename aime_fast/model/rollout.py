"""The two loops over time, outside training: filtering observed frames and imagining unobserved ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from aime_fast.errors import UserError
from aime_fast.model.assembly import Assembly
from aime_fast.model.draws import make_draws
from aime_fast.model.state import LatentState, join

Policy = Callable[[LatentState], Tensor]
"""Chooses the actions: the state of one frame [N, 1, ...] -> [N, A]."""


def advance(model: Assembly, state: LatentState, action: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM's output and cell [B, 1, H] after the state of one frame [B, 1, ...] and its action [B, A]."""
    if state.cell is None:
        raise UserError("this state has no LSTM cell (a training pass keeps none); take it from model.observe")
    if action.shape != (len(state.latent), model.config.action_dim):
        wanted = (len(state.latent), model.config.action_dim)
        raise UserError(f"the actions of one frame are {tuple(action.shape)}; the model reads {wanted}")
    before = state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous()
    hidden, (_, cell) = model.dynamics(state.latent, state.context, state.attention, action[:, None], before)
    return hidden, cell.transpose(0, 1)


def extend(model: Assembly, state: LatentState, observations: Tensor, previous_actions: Tensor | None) -> LatentState:
    """The state of T frames that follow `state`, at the posterior means.

    Perception processes the T frames at once, the LSTM one by one.

    Args:
        model: the world model.
        state: what is known before; its last frame is the one before the new ones, if it has frames.
        observations: [B, T, 3, H, W], uint8 or float in [-1, 1].
        previous_actions: [B, T, A]; number i was taken before frame i. Without frames in `state` the first is not read.

    Raises:
        UserError: for shapes that do not fit, a missing action, and a state that no frame can follow.
    """
    if state.memory is None:
        raise UserError("no frame can be filtered after an imagined or a training state; take it from model.observe")
    if len(observations) != len(state.latent):
        raise UserError(f"the observations have {len(observations)} sequences and the state {len(state.latent)}")
    if previous_actions is None:
        if state.frames:
            raise UserError("filter needs previous_action, the action taken after the state's last frame")
        previous_actions = model.mean_frame.new_zeros(*observations.shape[:2], model.config.action_dim)
    frames = model.check(observations, previous_actions)
    batch, time = shape = frames.shape[:2]
    flat, _ = model.standardise(frames)
    context, memory = model.perceiver.extend(model.tokenizer.encode(flat, shape)[2], state.memory)
    features = model.trunk(flat)
    latent, _ = model.posterior(flat, features, context)
    attention = model.attention(features, context)
    states = [state.at(-1)] if state.frames else []
    for t in range(time):
        if states:
            hidden, cell = advance(model, states[-1], previous_actions[:, t])
        else:
            hidden, cell = (x.transpose(0, 1) for x in model.dynamics.start_state(batch))
        z, c, slots, seen = (x[:, t : t + 1] for x in (latent, context, attention.slots, attention.state))
        states.append(LatentState(z, c, slots, seen, hidden, cell, memory))
    return join(states[-time:])


def imagine(
    model: Assembly, state: LatentState, policy: Policy, horizon: int, generator: torch.Generator
) -> LatentState:
    """The `horizon` frames that follow the state of one frame [N, 1, ...]: action, LSTM, prior, z and its slots."""
    no_context, no_attention = torch.zeros_like(state.context), torch.zeros_like(state.attention)
    imagined = []
    for _ in range(horizon):
        hidden, cell = advance(model, state, policy(state))
        draws = make_draws(model.prior.draws, len(hidden), 1, generator).to(hidden.device)
        latent = model.prior(hidden, state.context, state.latent, draws).sample(generator)
        state = LatentState(latent, no_context, model.predictor(latent), no_attention, hidden, cell)
        imagined.append(state)
    return join(imagined)


def replay(actions: Tensor, batch: int, samples: int) -> Policy:
    """The policy that takes recorded actions [B, horizon, A] in turn, for `samples` futures of each sequence."""
    if actions.ndim != 3 or len(actions) != batch:
        raise UserError(f"actions are {tuple(actions.shape)}; imagine reads [{batch}, horizon, A]")
    given = iter(actions.repeat_interleave(samples, 0).unbind(1))
    return lambda _: next(given)
