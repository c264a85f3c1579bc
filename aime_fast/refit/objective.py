"""What the parts that learn anew minimise: their terms of training, from latents alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from aime_fast.config import LossConfig
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.parts.attention_schema import Attention
from aime_fast.model.parts.layers import previous
from aime_fast.model.state import LatentState
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.perceived import Perceived
from aime_fast.tasks.elbo import cluster_entropy, latent_terms
from aime_fast.tasks.predictive import attention_kl, motion_loss
from aime_fast.tasks.task import Task

SHOWN = 16
"""Windows of a step whose maps are predicted too."""


@dataclass(frozen=True)
class Objective:
    """What the fitted parts of a model minimise."""

    tasks: Sequence[Task]
    weights: LossConfig
    example: SequenceOutputs
    """A record of a pass, of which everything that is fitted is replaced."""

    def loss(self, model: WorldModel, windows: Perceived, generator: Generator) -> Tensor:
        """The losses of windows [B, T] as in training, 0-d, with noise and draws from `generator`."""
        noise = torch.randn(2, *windows.mean.shape, generator=generator)
        key = int(torch.randint(2**31, (), generator=generator))
        outputs = self._pass(model, windows, noise, key, model.config.latent_noise)
        terms = latent_terms(outputs)
        hierarchical = sum(kl.mean() for kl in outputs.prior.kl_terms().values())
        entropy = cluster_entropy(terms["usage"], terms["responsibility_entropy"])
        loss = terms["kl_z"] + hierarchical - self.weights.entropy_weight * entropy
        loss = loss + attention_kl(outputs) + self.weights.lambda_att_dyn * motion_loss(outputs)
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

    def _pass(self, model: WorldModel, windows: Perceived, noise: Tensor, key: int, carried: float) -> SequenceOutputs:
        """The record of a pass in which nothing is seen or drawn. Heads read h as it is, and do not train it."""
        seen = windows.to(model.mean_frame.device)
        noise = noise.to(seen.mean.device)
        latent = seen.mean + (0.5 * seen.log_var).exp() * noise[0]
        noisy = latent + carried * noise[1]
        start = model.dynamics.start_state(len(latent))
        hidden, _ = model.dynamics(noisy, seen.actions, start)
        before = previous(hidden, start[0][-1, 0])
        taken = F.pad(seen.actions[:, :-1], (0, 0, 1, 0))
        draws = model.draws(key, *latent.shape[:2]).to(latent.device)
        prior = model.prior(before, taken, previous(noisy, model.prior.start_latent), draws)
        read = (seen.maps, hidden.detach(), latent, seen.actions)
        log_maps, motion = model.attention_prior(*(x[:SHOWN, :-1] for x in read))  # convolutions: the dearest part
        state = LatentState(latent, seen.maps, before.detach())
        attention: Attention = self.example.attention
        return replace(
            self.example,
            posterior_mean=seen.mean,
            posterior_log_var=seen.log_var,
            samples=latent[:, :, None],
            state=state,
            prior=prior,
            attention=replace(attention, maps=seen.maps[:SHOWN], centres=seen.centres[:SHOWN]),
            prior_log_maps=log_maps,
            motion=motion,
            hidden_states=hidden,
            heads={name: head(state) for name, head in model.heads.items()},
            draws=draws,
        )
