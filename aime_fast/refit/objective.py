"""What the parts that learn anew minimise: their terms of training, from latents alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from aime_fast.config import LossConfig
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.parts.layers import previous
from aime_fast.model.state import LatentState
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.perceived import Perceived
from aime_fast.tasks.elbo import cluster_entropy, latent_terms
from aime_fast.tasks.predictive import attention_kl, motion_loss
from aime_fast.tasks.task import Task

DROPPED = 0.5
"""Share of h that the prior does without at first; it falls to none. Otherwise it learns h of few episodes by heart."""
MOTION = 10.0
"""What the motion counts, in `lambda_att_dyn`: with 1 it is still near zero motion when the maps have learnt."""


@dataclass(frozen=True)
class Objective:
    """What the fitted parts of a model minimise."""

    tasks: Sequence[Task]
    weights: LossConfig
    example: SequenceOutputs
    """A record of a pass, of which everything that is fitted is replaced."""

    def loss(self, model: WorldModel, windows: Perceived, generator: Generator, done: float) -> Tensor:
        """The losses of windows [B, T] as in training, 0-d, with noise and draws from `generator`.

        The prior does without a share of h (Srivastava et al. 2014), less of it as `done` goes from 0 to 1.
        """
        noise = torch.randn(2, *windows.mean.shape, generator=generator)
        key = int(torch.randint(2**31, (), generator=generator))
        kept = _kept((*windows.mean.shape[:2], model.config.hidden_dim), DROPPED * (1 - done), generator)
        outputs = self._pass(model, windows, noise, key, model.config.latent_noise, kept)
        terms = latent_terms(outputs)
        hierarchical = sum(kl.mean() for kl in outputs.prior.kl_terms().values())
        entropy = cluster_entropy(terms["usage"], terms["responsibility_entropy"])
        loss = terms["kl_z"] + hierarchical - self.weights.entropy_weight * entropy
        batch = windows.batch().to(loss.device)
        for task in self.tasks:
            if task.name in model.heads:
                loss = loss + task.losses(outputs, 1.0, self.weights, batch)[task.total]
        return loss

    @torch.no_grad()
    def nats(self, model: WorldModel, windows: Perceived, seed: int) -> float:
        """Cost of z in nats a frame, without carried noise; equal seeds give equal draws."""
        noise = torch.randn(2, *windows.mean.shape, generator=Generator().manual_seed(seed))
        return float(latent_terms(self._pass(model, windows, noise, seed, 0.0))["kl_z"])

    def attention_loss(self, model: WorldModel, windows: Perceived, generator: Generator, _: float) -> Tensor:
        """The losses of top-down attention in windows [B, T], 0-d: of maps and motion, given sampled z and its h."""
        outputs = self._attended(model, windows, torch.randn(windows.mean.shape, generator=generator))
        return attention_kl(outputs) + MOTION * self.weights.lambda_att_dyn * motion_loss(outputs)

    @torch.no_grad()
    def map_error(self, model: WorldModel, windows: Perceived) -> float:
        """KL of maps and predicted ones in nats a slot, given the means of z."""
        return float(attention_kl(self._attended(model, windows, torch.zeros(windows.mean.shape))))

    def _attended(self, model: WorldModel, windows: Perceived, noise: Tensor) -> SequenceOutputs:
        """A record with maps and motion of windows [B, T], observed and predicted, and nothing else of them."""
        seen = windows.to(model.mean_frame.device)
        with torch.no_grad():
            latent = seen.mean + (0.5 * seen.log_var).exp() * noise.to(seen.mean.device)
            hidden, _ = model.dynamics(latent, seen.actions, model.dynamics.start_state(len(latent)))
        read = (seen.maps, hidden, latent, seen.actions)
        log_maps, motion = model.attention_prior(*(x[:, :-1] for x in read))
        attention = replace(self.example.attention, maps=seen.maps, centres=seen.centres)
        return replace(self.example, attention=attention, prior_log_maps=log_maps, motion=motion)

    def _pass(
        self,
        model: WorldModel,
        windows: Perceived,
        noise: Tensor,
        key: int,
        carried: float,
        kept: Tensor | None = None,
    ) -> SequenceOutputs:
        """The record of a pass in which nothing is seen or drawn. Heads read h as it is, and do not train it.

        `kept` [B, T, H] multiplies the h that the prior reads.
        """
        seen = windows.to(model.mean_frame.device)
        noise = noise.to(seen.mean.device)
        latent = seen.mean + (0.5 * seen.log_var).exp() * noise[0]
        noisy = latent + carried * noise[1]
        start = model.dynamics.start_state(len(latent))
        hidden, _ = model.dynamics(noisy, seen.actions, start)
        before = previous(hidden, start[0][-1, 0])
        taken = F.pad(seen.actions[:, :-1], (0, 0, 1, 0))
        draws = model.draws(key, *latent.shape[:2]).to(latent.device)
        read = before if kept is None else before * kept.to(before)
        prior = model.prior(read, taken, previous(noisy, model.prior.start_latent), draws)
        state = LatentState(latent, seen.maps, before.detach())
        return replace(
            self.example,
            posterior_mean=seen.mean,
            posterior_log_var=seen.log_var,
            samples=latent[:, :, None],
            state=state,
            prior=prior,
            attention=replace(self.example.attention, maps=seen.maps, centres=seen.centres),
            hidden_states=hidden,
            heads={name: head(state) for name, head in model.heads.items()},
            draws=draws,
        )


def _kept(shape: Sequence[int], dropped: float, generator: Generator) -> Tensor:
    """A share of zeros, and the others larger by as much, so that the mean is 1; float32 of this shape."""
    return (torch.rand(*shape, generator=generator) >= dropped).float() / (1 - dropped)
