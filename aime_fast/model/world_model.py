"""The world model: its parts joined so that each processes all T frames at once."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.config.schema import DEFAULT_IMAGE_SIZE
from aime_fast.errors import UserError
from aime_fast.model.assembly import HeadMaker
from aime_fast.model.draws import Draws, make_draws
from aime_fast.model.frame_memory import SingleFrames
from aime_fast.model.outputs import Inferred, SequenceOutputs
from aime_fast.model.parts.attention_schema import Attention
from aime_fast.model.parts.keeping import older
from aime_fast.model.parts.layers import previous
from aime_fast.model.parts.likelihood import Likelihood
from aime_fast.model.parts.tokenizer import Tokens
from aime_fast.model.priors.prior import PriorDistribution
from aime_fast.model.recalled import Recalled
from aime_fast.model.rollout import Rollouts
from aime_fast.model.state import LatentState

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""The files of an exported model."""


class DPGMMVariationalRecurrentAutoencoder(Rollouts):
    """AIME: tokenizer, causal perceiver, attention schema, posterior, dynamics, prior and decoder (docs/model.md).

    The arguments are fields of `ModelConfig`, by the same names: K, D, H, A and any other as a keyword. Raises
    `UserError` for an unknown field, prior or likelihood, and for sizes that do not fit together.
    """

    compiled = ("_tokenize", "_see", "_infer", "_generate")
    """Regions of `torch.compile`: each is crossed by the backward passes of the same tasks as a whole."""

    def __init__(
        self,
        max_components: int = 15,
        latent_dim: int = 36,
        hidden_dim: int = 512,
        action_dim: int = 21,
        **sizes: object,
    ) -> None:
        known = {f.name for f in fields(ModelConfig)}
        if unknown := sorted(set(sizes) - known):
            raise UserError(f"the model has no size named {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        sizes |= {"max_components": max_components, "latent_dim": latent_dim, "hidden_dim": hidden_dim}
        sizes["image_size"] = sizes.get("image_size") or DEFAULT_IMAGE_SIZE
        super().__init__(ModelConfig(action_dim=action_dim, **sizes))  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, config: ModelConfig) -> "DPGMMVariationalRecurrentAutoencoder":
        """The model of a typed configuration."""
        return cls(**vars(config))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, tasks: Iterable[HeadMaker] = ()
    ) -> "DPGMMVariationalRecurrentAutoencoder":
        """The model that `aime-fast export` wrote to `folder`, on the CPU and in evaluation mode; no code is loaded.

        Heads are made for `tasks` only; other heads in the file are not loaded. Raises `UserError` if the files are
        missing, damaged or from another version.
        """
        try:
            sizes = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))["model"]
            model = cls(**sizes)
            model.add_heads(tasks)
            own = model.state_dict().keys()
            weights = load_file(Path(folder) / WEIGHTS)
            model.load_state_dict({k: x for k, x in weights.items() if k in own or not k.startswith("heads.")})
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"{folder} holds no exported model ({error}); write one with `aime-fast export`") from error
        except RuntimeError as error:  # other names or shapes
            first = str(error).splitlines()[-1].strip()
            raise UserError(f"{folder} holds the model of another version ({first}); export it again") from error
        return model.eval()

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        draws: Draws | None = None,
        recalled: Recalled | None = None,
        singles: SingleFrames | None = None,
    ) -> SequenceOutputs:
        """One training pass over all frames; returns all that losses read. `UserError` for other types, shapes, ranges.

        Args:
            observations: [B, T, 3, H, W], uint8 or float in [-1, 1].
            actions: float [B, T, A]; a_t is taken after seeing frame t.
            draws: the random numbers of the step, from `self.draws`. None means the deterministic pass in evaluation
                mode, and numbers keyed by torch's global generator in training mode.
            recalled: earlier windows, of which dynamics and prior predict the latents too.
            singles: frames of earlier windows, which are encoded, and drawn in place of some of the windows' frames.
        """
        frames = self.check(observations, actions)
        if draws is None:  # not a step of training, which makes the frames itself
            self.check_range(observations)
        batch, time = frames.shape[:2]
        if draws is None and self.training:
            draws = self.draws(int(torch.randint(2**62, ())), batch, time)
        draws = (draws or make_draws(self.declared_draws, batch, time, None)).to(frames.device)

        every = torch.cat([frames, singles.frames], 1) if singles else frames  # what is encoded, [B, T + n, ...]
        flat, pixels, tokens = self._tokenize(every, time)
        context = self.perceiver(tokens.codes)
        known = F.pad(context, (0, 0, 0, every.shape[1] - time)) if singles else context  # single ones have none
        features, teacher_features, attention = self._see(flat, known)
        seen = self._infer(features, attention, known, draws, singles.noise if singles else None)
        attention = attention.until(time)
        rows = recalled.after(seen.noisy, actions, draws) if recalled else (seen.noisy, actions, draws)
        start = self.dynamics.start_state(len(rows[0]))
        hidden, _ = self.dynamics(*rows[:2], start)
        kept = older(frames, draws["kept"], self.mean_frame)
        drawn, older_frames = seen.latents, kept
        if singles and seen.singles is not None:
            nothing = self.mean_frame.to(kept.dtype).expand_as(singles.frames)
            drawn, older_frames = singles.with_own(drawn, seen.singles), singles.with_own(kept, nothing)
            pixels = singles.with_own(*pixels.split([time, singles.frames.shape[1]], 1))
        before, prior, likelihood, masks = self._generate(drawn, older_frames, hidden, start[0][-1, 0], *rows)
        recalled_nats = None
        if recalled:  # after the batch's rows come those of earlier windows
            hidden, before = hidden[:batch], before[:batch]
            prior, others = prior.split(batch)
            recalled_nats = sum(others.kl_terms().values(), -others.log_prob(recalled.latents[:, :, None])[..., 0])
        single_kl = None
        if seen.singles is not None and seen.single_log_q is not None:
            single_kl = seen.single_log_q - prior.until(1).log_prob(seen.singles[:, None])[:, 0]
        fixed = (x[:, :-1].detach() for x in (attention.maps, hidden, seen.latents))
        prior_log_maps, motion = self.attention_prior(*fixed, actions[:, :-1])
        state = LatentState(seen.latents, attention.maps, before, kept=kept)
        return SequenceOutputs(
            observations=frames,
            pixels=pixels,
            posterior_mean=seen.mean,
            posterior_log_var=seen.log_var,
            samples=seen.samples,
            context=context,
            state=state,
            prior=prior,
            attention=attention,
            masks=masks,
            prior_log_maps=prior_log_maps,
            motion=motion,
            hidden_states=hidden,
            likelihood=likelihood,
            features=features.unflatten(0, every.shape[:2]),
            teacher_features=teacher_features.unflatten(0, every.shape[:2]),
            token_info=tokens,
            next_token_logits=self.perceiver.next_frame_logits(
                context[:, :-1], tokens.codes[:, :-1], tokens.ids[:, :-1], actions[:, :-1]
            ),
            heads={name: head(state) for name, head in self.heads.items()},
            draws=draws,
            recalled_nats=recalled_nats,
            recalled_weight=recalled.weight if recalled else None,
            singles=singles,
            single_kl=single_kl,
        )

    def _tokenize(self, frames: Tensor, time: int) -> tuple[Tensor, Tensor, Tokens]:
        """What `standardise` returns, and the tokens of the first `time` frames, which the perceiver's task trains."""
        flat, pixels = self.standardise(frames)
        own = flat
        if frames.shape[1] > time:
            own = flat.unflatten(0, frames.shape[:2])[:, :time].flatten(0, 1)
            own = own.contiguous(memory_format=torch.channels_last)
        return flat, pixels, self.tokenizer(own, self.mean_frame, (len(frames), time))

    def _see(self, flat: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Attention]:
        """Features, the teacher's features and attention of standardised frames [B*T, 3, H, W] with c [B, T, C]."""
        features = self.trunk(flat)
        with torch.no_grad():
            teacher_features = self.teacher(flat)
        return features, teacher_features, self.attention(features, context)

    def _infer(
        self, features: Tensor, attention: Attention, context: Tensor, draws: Draws, noise: Tensor | None
    ) -> Inferred:
        """The posterior of z of the frames, and its samples. `noise` [B, n, D] is that of single frames, the last n."""
        mean, log_var = self.posterior(features, attention, context)
        singles = log_q = None
        if noise is not None:
            time = mean.shape[1] - noise.shape[1]
            (mean, single_mean), (log_var, single_log_var) = (
                x.split([time, noise.shape[1]], 1) for x in (mean, log_var)
            )
            singles = single_mean + (0.5 * single_log_var).exp() * noise
            log_q = -0.5 * (noise.square() + single_log_var + math.log(2 * math.pi)).sum(-1)
        samples = mean[:, :, None] + (0.5 * log_var).exp()[:, :, None] * draws["latent"]
        latents = samples[:, :, 0]
        noisy = latents + self.config.latent_noise * draws["latent_noise"]
        return Inferred(mean, log_var, samples, latents, noisy, singles, log_q)

    def _generate(
        self, latents: Tensor, kept: Tensor, hidden: Tensor, start: Tensor, noisy: Tensor, actions: Tensor, draws: Draws
    ) -> tuple[Tensor, PriorDistribution, Likelihood, Tensor]:
        """h_{t-1} of every frame, of which the first is `start` [H]; the prior of z; p(x | z, kept); the masks.

        `hidden`, `noisy` and `actions` may have more rows than `latents` and `kept`: the prior is of all of them.
        """
        before = previous(hidden, start)
        taken = F.pad(actions[:, :-1], (0, 0, 1, 0))
        prior = self.prior(before, taken, previous(noisy, self.prior.start_latent), draws)
        return before, prior, *self.with_masks(latents, kept=kept)

    forward_sequence = forward

    @torch.no_grad()
    def reconstruct(self, outputs: SequenceOutputs) -> Tensor:
        """The decoder's mean at the posterior mean, with the frames kept in that pass, [B, T, 3, H, W] in [-1, 1]."""
        return self.likelihood(outputs.posterior_mean, outputs.state.kept).mean()

    def draws(self, key: int, batch: int, frames: int) -> Draws:
        """The random numbers of one step on a global batch, from `key` alone: equal on every rank and device."""
        return make_draws(self.declared_draws, batch, frames, torch.Generator().manual_seed(key))

    @torch.no_grad()
    def after_step(
        self,
        ids: Tensor,
        encodings: Tensor,
        draws: Draws,
        finite: Tensor,
        stored: Callable[[nn.Parameter], Tensor] = lambda parameter: parameter.data,
    ) -> None:
        """Update the moving averages, codebook and teacher, once a step. Collective: every rank calls it.

        `ids` [b, T, P] and `encodings` [b, T, P, d] are those of `token_info`, and `draws` the random numbers, of this
        rank's windows. Where `finite` (0-d bool, equal on all ranks) is false nothing changes. `stored` gives the
        memory that holds this process's part of a parameter.
        """
        buffers = list(self.tokenizer.codebook.buffers())
        kept = torch.cat([buffer.flatten() for buffer in buffers])
        first = draws.first_row * ids.shape[1] * ids.shape[2]
        self.tokenizer.codebook.update(ids.flatten(), encodings.flatten(0, 2).float(), draws["code_candidates"], first)
        new = torch.cat([buffer.flatten() for buffer in buffers])
        parts = torch.where(finite, new, kept).split([buffer.numel() for buffer in buffers])
        torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(parts, buffers, strict=True)])
        teacher, live = ([stored(p) for p in part.parameters()] for part in (self.teacher, self.trunk))
        moves = torch._foreach_sub(live, teacher)
        torch._foreach_mul_(moves, (1 - self.config.teacher_decay) * finite)
        torch._foreach_add_(teacher, moves)
