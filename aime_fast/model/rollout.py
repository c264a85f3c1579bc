"""The model outside training: filtering observed frames, imagining unobserved ones, decoding both."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from aime_fast.errors import UserError
from aime_fast.model.assembly import Assembly
from aime_fast.model.draws import make_draws
from aime_fast.model.parts.likelihood import Likelihood
from aime_fast.model.parts.perceiver import PerceiverMemory
from aime_fast.model.priors.prior import Noise
from aime_fast.model.state import LatentState, join

Policy = Callable[[LatentState], Tensor]
"""Chooses the actions: the state of one frame [N, 1, ...] -> [N, A]."""


class Rollouts(Assembly):
    """The parts with the calls that move a `LatentState` through time."""

    def initial_state(self, batch: int) -> LatentState:
        """The state before the first frame of `batch` sequences: tensors [B, 0, ...]; `filter` goes on from it."""

        def empty(*size: int) -> Tensor:
            return self.mean_frame.new_zeros(batch, 0, *size)

        c = self.config
        hidden, maps = empty(c.hidden_dim), empty(c.num_slots, c.grid**2)
        frame = empty(3, c.image_size, c.image_size)
        return LatentState(empty(c.latent_dim), maps, hidden, hidden, PerceiverMemory(), frame, frame)

    @torch.no_grad()
    def observe(self, observations: Tensor, actions: Tensor) -> LatentState:
        """The state [B, T, ...] of a window's frames, at the posterior means, without gradients.

        Frames [B, T, 3, H, W] are uint8 or float in [-1, 1]. Of the actions [B, T-1 or more, A] the first T-1 are read;
        a_t is taken after seeing frame t. Raises `UserError` for other shapes.
        """
        time = observations.shape[1]
        if actions.ndim != 3 or actions.shape[1] < time - 1:
            raise UserError(f"actions are {tuple(actions.shape)}; observe reads [B, {time - 1} or more, A]")
        previous_actions = F.pad(actions[:, : time - 1], (0, 0, 1, 0))
        return self._extend(self.initial_state(len(observations)), observations, previous_actions)

    @torch.no_grad()
    def filter(self, state: LatentState, observation: Tensor, previous_action: Tensor | None = None) -> LatentState:
        """The state [B, 1, ...] of one more frame; it equals that of `observe` on all frames so far.

        The frame [B, 3, H, W], uint8 or float in [-1, 1], follows the last one of `state`, which is of `observe`,
        `filter` or `initial_state`. `previous_action` [B, A] was taken in between; not needed after `initial_state`.
        Raises `UserError` for other shapes, and for a state that no frame can follow.
        """
        if previous_action is None:
            if state.frames:
                raise UserError("filter needs previous_action, the action taken after the state's last frame")
            previous_action = self.mean_frame.new_zeros(len(observation), self.config.action_dim)
        return self._extend(state, observation[:, None], previous_action[:, None])

    def _extend(self, state: LatentState, observations: Tensor, previous_actions: Tensor) -> LatentState:
        """The state of the T frames that follow; action i was taken before frame i.

        Perception processes the T frames at once, the LSTM one by one.
        """
        if state.memory is None:
            raise UserError(
                "no frame can be filtered after an imagined or a training state; take it from model.observe"
            )
        if len(observations) != len(state.latent):
            raise UserError(f"the observations have {len(observations)} sequences and the state {len(state.latent)}")
        frames = self.check(observations, previous_actions)
        self.check_range(observations)
        batch, time = shape = frames.shape[:2]
        flat, _ = self.standardise(frames)
        context, memory = self.perceiver.extend(self.tokenizer.encode(flat, shape)[2], state.memory)
        features = self.trunk(flat)
        attention = self.attention(features, context)
        latent, _ = self.posterior(features, attention, context)
        states = [state.at(-1)] if state.frames else []
        for t in range(time):
            if states:
                hidden, cell = self._advance(states[-1], previous_actions[:, t])
            else:
                hidden, cell = (x.transpose(0, 1) for x in self.dynamics.start_state(batch))
            kept = states[-1].seen if states else self.mean_frame.expand(batch, 1, -1, -1, -1)
            z, maps, seen = (x[:, t : t + 1] for x in (latent, attention.maps, frames))
            states.append(LatentState(z, maps, hidden, cell, memory, kept, seen))
        return join(states[-time:])

    def _advance(self, state: LatentState, action: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's output and cell [B, 1, H] after the state of one frame [B, 1, ...] and its action [B, A]."""
        if state.cell is None:
            raise UserError("this state has no LSTM cell (a training pass keeps none); take it from model.observe")
        wanted = (len(state.latent), self.config.action_dim)
        if action.shape != wanted:
            raise UserError(f"the actions of one frame are {tuple(action.shape)}; the model reads {wanted}")
        before = state.hidden.transpose(0, 1).contiguous(), state.cell.transpose(0, 1).contiguous()
        actions = action[:, None].to(state.latent)
        hidden, (_, cell) = self.dynamics(state.latent, actions, before)
        return hidden, cell.transpose(0, 1)

    def imagine(
        self,
        state: LatentState,
        actions: Tensor | Policy,
        samples: int = 1,
        horizon: int | None = None,
        key: int = 0,
        differentiable: bool = False,
        alike: bool = False,
    ) -> LatentState:
        """Predict the frames that follow the last frame of `state`, from actions alone.

        Raises `UserError` for a state without frames or without an LSTM cell, and for actions of another shape.

        Args:
            state: of `observe` or `filter` (or of an earlier `imagine`), [B, T, ...].
            actions: [B, horizon, A], of which the first is taken after seeing the state's last frame, so that action i
                leads to imagined frame i; or a policy, called with the state [B*samples, 1, ...] of each frame.
            samples: futures drawn for each sequence.
            horizon: frames to imagine; needed for a policy, and at most the number of actions.
            key: seed of the random draws.
            differentiable: keep the graph, so that the result has gradients for actions, policy, `state` and model. The
                choice of a mixture component is drawn and has no gradient; its Gaussian is reparameterised.
            alike: future s of every sequence has the same random numbers, so that futures from different actions can be
                compared with less chance in it.

        Returns:
            The state [B*samples, horizon, ...] of the imagined frames; row b*samples + s is future s of sequence b.
        """
        if not state.frames:
            raise UserError("imagine needs a state with at least one frame; filter one from initial_state first")
        given = None
        if isinstance(actions, Tensor):
            if actions.ndim != 3 or len(actions) != len(state.latent):
                raise UserError(f"actions are {tuple(actions.shape)}; imagine reads [{len(state.latent)}, horizon, A]")
            given = actions.shape[1]
        steps = given if horizon is None else horizon
        if steps is None or steps < 1 or samples < 1 or (given is not None and steps > given):
            got = f"imagine got {given or 'no recorded'} actions, horizon {horizon} and samples {samples}"
            raise UserError(f"{got}; both are at least 1, and a horizon is at most the number of actions")
        generator, imagined = torch.Generator().manual_seed(key), []
        with torch.set_grad_enabled(differentiable):
            state = state.at(-1).repeat(samples)
            kept = state.newest
            distinct = samples if alike else len(state.latent)
            noise, repeats = Noise(generator, distinct), len(state.latent) // distinct
            for t in range(steps):
                action = actions[:, t].repeat_interleave(samples, 0) if isinstance(actions, Tensor) else actions(state)
                hidden, cell = self._advance(state, action)
                draws = make_draws(self.prior.draws, distinct, 1, generator).repeat(repeats).to(hidden.device)
                taken = action[:, None].to(hidden)
                latent = self.prior(hidden, taken, state.latent, draws).sample(noise)
                log_maps, _ = self.attention_prior(state.maps, hidden, state.latent, taken)
                state = LatentState(latent, log_maps.exp(), hidden, cell)
                imagined.append(state)
                state = replace(state, kept=kept)
            # One frame for all of the future: a view of it, not a copy for each.
            return replace(join(imagined), kept=kept if kept is None else kept.expand(-1, steps, -1, -1, -1))

    def decode(self, state: LatentState) -> Likelihood:
        """p(x | z, kept) of the frames of a state; `decode(state).mean()` is the expected frames [B, T, 3, H, W]."""
        return self.likelihood(state.latent, state.kept)
