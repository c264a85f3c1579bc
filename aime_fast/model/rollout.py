"""The two loops over time, outside training: filtering observed frames and imagining unobserved ones."""

from collections.abc import Callable

import torch
from torch import Tensor

from aime_fast.errors import UserError
from aime_fast.model.assembly import Assembly
from aime_fast.model.draws import sample_draws
from aime_fast.model.state import LatentState, join

Policy = Callable[[LatentState], Tensor]
"""Chooses the actions: the state of one frame [N, 1, ...] -> [N, A]."""


def advance(model: Assembly, state: LatentState, action: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM's output and cell [B, 1, H] after the state of one frame [B, 1, ...] and its action [B, A]."""
    if state.cell is None:
        raise UserError("this state has no LSTM cell (a training pass keeps none); take it from model.observe")
    before = state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous()
    hidden, (_, cell) = model.dynamics(state.latent, state.context, state.attention, action[:, None], before)
    return hidden, cell.transpose(0, 1)


def extend(model: Assembly, state: LatentState, observations: Tensor, previous_actions: Tensor) -> LatentState:
    """The state of T frames that follow `state`, at the posterior means.

    Perception processes the T frames at once, the LSTM one by one. observations [B, T, 3, H, W]; previous_actions
    [B, T, A], of which number i was taken before frame i; the first is not read where `state` has no frame.
    """
    if state.memory is None:
        raise UserError("no frame can be filtered after an imagined or a training state; take it from model.observe")
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
        draws = sample_draws(model.prior.draws, len(hidden), 1, generator).to(hidden.device)
        latent = model.prior(hidden, state.context, state.latent, draws).sample(generator)
        state = LatentState(latent, no_context, model.predictor(latent), no_attention, hidden, cell)
        imagined.append(state)
    return join(imagined)


def as_policy(actions: Tensor | Policy, rows: tuple[int, int], size: int, horizon: int | None) -> tuple[Policy, int]:
    """Actions or a policy as a policy for B x samples `rows`, and the number of frames to imagine.

    `size` is A. `UserError` for a policy without a horizon, and for actions of another shape.
    """
    if not isinstance(actions, Tensor):
        if horizon is None or horizon < 1:
            raise UserError("imagine needs a horizon of at least 1 when a policy chooses the actions")
        return actions, horizon
    batch, samples = rows
    steps = horizon or (actions.shape[1] if actions.ndim == 3 else 0)
    if actions.ndim != 3 or actions.shape[::2] != (batch, size) or not 1 <= steps <= actions.shape[1]:
        wanted = f"[{batch}, {horizon or 1} or more, {size}]"
        raise UserError(f"actions are {tuple(actions.shape)}; imagine reads {wanted}, one for each imagined frame")
    given = iter(actions.repeat_interleave(samples, 0).unbind(1))
    return lambda _: next(given), steps
