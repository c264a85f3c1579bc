"""The world model: five parts put together so that every part sees all T frames at once."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from aime_fast.config import ModelConfig
from aime_fast.errors import UserError
from aime_fast.model.draws import Noise, draw_noise, no_noise
from aime_fast.model.imagination import imagine
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.parts.attention_schema import BottomUpAttention, TopDownAttention
from aime_fast.model.parts.codec import Decoder, PosteriorHead, Trunk, subimages
from aime_fast.model.parts.dynamics import Dynamics, SlotPredictor
from aime_fast.model.parts.layers import previous
from aime_fast.model.parts.likelihood import FAMILIES, Likelihood
from aime_fast.model.parts.perceiver import CausalPerceiver
from aime_fast.model.parts.tokenizer import Tokenizer
from aime_fast.model.priors.dpgmm import DPGMMPrior
from aime_kernels import normalise_frames

CONTRAST = 4.0
"""Networks see (x - mean frame) * CONTRAST: differences of about unit size."""
WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""The files of an exported model."""


class DPGMMVariationalRecurrentAutoencoder(nn.Module):
    """AIME: tokenizer and causal perceiver, frame codec, mixture prior, attention schema, recurrent dynamics.

    Args:
        max_components: K, truncation of the Dirichlet process.
        latent_dim: D, size of z_t.
        hidden_dim: H, size of the LSTM state.
        action_dim: A, numbers in an action.
        **sizes: any other field of `ModelConfig`.

    Raises:
        UserError: for an unknown size, or sizes that do not fit together.
    """

    mean_frame: Tensor
    """[3, H, W] in [-1, 1]: what networks see and predict is the difference to it; zero until the trainer sets it."""

    compiled = ("standardise",)

    def __init__(
        self, max_components: int = 15, latent_dim: int = 36, hidden_dim: int = 512, action_dim: int = 21, **sizes: Any
    ) -> None:
        super().__init__()
        known = {f.name for f in fields(ModelConfig)}
        if unknown := sorted(set(sizes) - known):
            raise UserError(f"the model has no size named {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        self.config = config = ModelConfig(
            max_components=max_components, latent_dim=latent_dim, hidden_dim=hidden_dim, action_dim=action_dim, **sizes
        )
        check_sizes(config)
        self.register_buffer("mean_frame", torch.zeros(3, config.image_size, config.image_size))
        self.tokenizer = Tokenizer(config)
        self.perceiver = CausalPerceiver(config)
        self.trunk = Trunk(config)
        self.teacher = Trunk(config).requires_grad_(False)
        self.teacher.load_state_dict(self.trunk.state_dict())
        self.posterior = PosteriorHead(config)
        self.decoder = Decoder(config)
        self.prior = DPGMMPrior(config)
        self.attention = BottomUpAttention(config)
        self.attention_prior = TopDownAttention(config)
        self.dynamics = Dynamics(config)
        self.predictor = SlotPredictor(config)
        self.heads = nn.ModuleDict()

    @classmethod
    def from_config(cls, config: ModelConfig) -> "DPGMMVariationalRecurrentAutoencoder":
        """The model of a typed configuration."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(config)})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DPGMMVariationalRecurrentAutoencoder":
        """The model that `aime-fast export` wrote to `folder`, on the CPU and in evaluation mode; no code is loaded.

        Raises `UserError` where the files are missing, damaged or of another version's model.
        """
        try:
            sizes = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))["model"]
            model = cls(**sizes)
            model.load_state_dict(load_file(Path(folder) / WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"{folder} holds no exported model ({error}); write one with `aime-fast export`") from error
        except RuntimeError as error:  # what load_state_dict says of other names or shapes
            first = str(error).splitlines()[1].strip()
            raise UserError(f"{folder} is of another version's model ({first}); export it anew") from error
        return model.eval()

    def forward(self, observations: Tensor, actions: Tensor, noise: Noise | None = None) -> SequenceOutputs:
        """The same as `forward_sequence`."""
        return self.forward_sequence(observations, actions, noise)

    def forward_sequence(self, observations: Tensor, actions: Tensor, noise: Noise | None = None) -> SequenceOutputs:
        """Everything the losses need of a window, in one pass over all frames.

        Args:
            observations: [B, T, 3, H, W], uint8 or float in [-1, 1].
            actions: float [B, T, A]; a_t is taken after seeing frame t.
            noise: the step's draws, from `draw_noise`; none means posterior means, median sticks, no substitution and
                nothing added to z in evaluation mode, and draws keyed by torch's global generator in training mode.
        """
        frames = self._check(observations, actions)
        batch, time = frames.shape[:2]
        flat, pixels = self.standardise(frames)
        noise = self._noise(noise, batch, time).to(flat.device)

        tokens = self.tokenizer(flat, self.mean_frame)
        context = self.perceiver(tokens.codes.unflatten(0, (batch, time)))
        features = self.trunk(flat)
        with torch.no_grad():
            teacher_features = self.teacher(flat)
        mean, log_var = self.posterior(flat, features, context)
        samples = mean[:, :, None] + (0.5 * log_var).exp()[:, :, None] * noise.latent
        latents = samples[:, :, 0]
        attention = self.attention(features, context)

        # The predictive task does not pull on what it predicts from: its pull does not fade when it has learned to.
        predicted = self.predictor(latents.detach())
        # As in imagination: no context, no attention, slots from z, and a z that is not quite the right one.
        imagined = noise.substitute[..., None]
        used_slots = torch.where(imagined[..., None], predicted, attention.slots)
        used_context, used_state = context.masked_fill(imagined, 0.0), attention.state.masked_fill(imagined, 0.0)
        carried = latents + self.config.carry_noise * noise.carried
        start = self.dynamics.start_state(batch)
        hidden, _ = self.dynamics(carried, used_context, used_state, actions, start)
        prior = self.prior(
            previous(hidden, start[0][-1, 0]),
            previous(used_context, self.prior.start_context),
            previous(carried, self.prior.start_latent),
            noise.sticks,
        )
        stick_kl, alpha_kl = self.prior.divergences(prior)
        prior_log_maps, motion = self.attention_prior(
            attention.maps[:, :-1].detach(), hidden[:, :-1].detach(), latents[:, :-1].detach(), actions[:, :-1]
        )
        return SequenceOutputs(
            observations=frames,
            pixels=pixels,
            context=context,
            posterior_mean=mean,
            posterior_log_var=log_var,
            samples=samples,
            latents=latents,
            prior=prior,
            stick_kl=stick_kl,
            alpha_kl=alpha_kl,
            attention=attention,
            prior_log_maps=prior_log_maps,
            motion=motion,
            predicted=predicted,
            hidden_states=hidden,
            likelihood=self.decode(latents, used_slots),
            features=features,
            teacher_features=teacher_features,
            token_info=tokens,
            next_token_logits=self.perceiver.next_frame_logits(context[:, :-1]),
            noise=noise,
        )

    def standardise(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, T, 3, H, W] -> what networks see of them [B*T, 3, H, W], channels last, and their `subimages`."""
        flat = frames.flatten(0, 1)
        seen = ((flat - self.mean_frame) * CONTRAST).contiguous(memory_format=torch.channels_last)
        return seen, subimages(flat, self.decoder.patch).contiguous()

    def decode(self, latents: Tensor, slots: Tensor) -> Likelihood:
        """p(x | z, slots) of z [B, T, D] and slots [B, T, S, d], over B*T frames."""
        features, centre = self.decoder(latents, slots, self.mean_frame)
        return FAMILIES[self.config.likelihood](features, self.decoder.head.weight, centre)

    @torch.no_grad()
    def reconstruct(self, outputs: SequenceOutputs) -> Tensor:
        """Decoder mean at the posterior mean and the frame's own slots, [B, T, 3, H, W] in [-1, 1]."""
        mean = self.decode(outputs.posterior_mean, outputs.attention.slots).mean()
        return mean.unflatten(0, outputs.context.shape[:2])

    @torch.no_grad()
    def imagine(self, observations: Tensor, actions: Tensor, samples: int = 1, key: int = 0) -> Tensor:
        """Open loop: filter the context frames, then go on from actions alone.

        Args:
            observations: the context frames [B, T0, 3, H, W], uint8 or float in [-1, 1], T0 >= 1.
            actions: [B, T0 + horizon - 1 or more, A], the context's and the future's; a_t leads to frame t+1.
                Every action from T0 - 1 on imagines one frame.
            samples: futures drawn for each sequence.
            key: decides the draws.

        Returns:
            Expected frames [B, samples, horizon, 3, H, W] in [-1, 1]; horizon = actions.shape[1] - T0 + 1.
        """
        return imagine(self, observations, actions, samples, key)

    def draw_noise(self, key: int, batch: int, frames: int) -> Noise:
        """The draws of one step on a global batch of `batch` windows of `frames` frames."""
        return draw_noise(self.config, key, batch, frames)

    @torch.no_grad()
    def after_step(
        self,
        outputs: list[SequenceOutputs],
        finite: Tensor | None = None,
        stored: Callable[[nn.Parameter], Tensor] = lambda parameter: parameter.data,
    ) -> None:
        """Move the codebook's and the teacher's averages by one step; `outputs` holds the step's micro-batches.

        Where `finite` (0-d bool, equal on all ranks) is false both stay as they were. `stored` gives the memory that
        holds this process's part of a parameter. Collective: every rank calls it once a step.
        """
        kept = [buffer.clone() for buffer in self.tokenizer.codebook.buffers()]
        cells = self.config.grid**2
        first = outputs[0].noise.first_row * outputs[0].context.shape[1] * cells
        self.tokenizer.codebook.update(
            torch.cat([o.token_info.ids.flatten() for o in outputs]),
            torch.cat([o.token_info.encodings.flatten(0, 1) for o in outputs]).float(),
            outputs[0].noise.candidates,
            first,
        )
        if finite is not None:
            for buffer, old in zip(self.tokenizer.codebook.buffers(), kept, strict=True):
                buffer.copy_(torch.where(finite, buffer, old))
        teacher, live = ([stored(p) for p in part.parameters()] for part in (self.teacher, self.trunk))
        moves = torch._foreach_sub(live, teacher)
        torch._foreach_mul_(moves, 1 - self.config.teacher_decay)
        if finite is not None:
            torch._foreach_mul_(moves, finite.to(moves[0].dtype))
        torch._foreach_add_(teacher, moves)

    def _noise(self, noise: Noise | None, batch: int, frames: int) -> Noise:
        if noise is not None:
            return noise
        if not self.training:
            return no_noise(self.config, batch, frames)
        return self.draw_noise(int(torch.randint(2**62, ())), batch, frames)

    def _check(self, observations: Tensor, actions: Tensor) -> Tensor:
        size = self.config.image_size
        if observations.ndim != 5 or observations.shape[2:] != (3, size, size):
            raise UserError(f"observations are {tuple(observations.shape)}; the model reads [B, T, 3, {size}, {size}]")
        if actions.shape != (*observations.shape[:2], self.config.action_dim):
            wanted = (*observations.shape[:2], self.config.action_dim)
            raise UserError(f"actions are {tuple(actions.shape)}; the model reads {wanted}: check action_dim")
        if observations.dtype == torch.uint8:
            return normalise_frames(observations.movedim(2, -1))
        return observations


def check_sizes(config: ModelConfig) -> None:
    """Refuse sizes that do not fit together, with `UserError`."""
    rules = {
        "action_dim must be at least 1": config.action_dim >= 1,
        "max_components must be at least 2": config.max_components >= 2,
        "grid must be an even number": config.grid >= 2 and config.grid % 2 == 0,
        "image_size must be a multiple of 4 * grid": config.image_size % (4 * config.grid) == 0,
        "perceiver_dim must be a multiple of perceiver_heads": config.perceiver_dim % config.perceiver_heads == 0,
        "kl_samples must be at least 1": config.kl_samples >= 1,
        "decoder_width must be a multiple of 2": config.decoder_width % 2 == 0,
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise UserError(f"model sizes do not fit: {'; '.join(broken)}")
