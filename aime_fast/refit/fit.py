"""Fits the parts that h belongs to, to the latents of a finished model.

While a model trains its z moves, and LSTM and prior follow a z that will be another one soon. On a finished z they
learn more of the actions in minutes than in the whole training (docs/log.md). Where there are few frames, they have
learnt them by heart; here training episodes that are kept aside say when to stop.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count, islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import LossConfig
from aime_fast.data.store import Episodes
from aime_fast.evaluation.metrics import evaluating
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.parts.attention_schema import Attention
from aime_fast.model.parts.layers import previous
from aime_fast.model.state import LatentState
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.perceived import Perceived, perceive
from aime_fast.tasks.elbo import cluster_entropy, latent_terms
from aime_fast.tasks.predictive import attention_kl, motion_loss
from aime_fast.tasks.task import Task, belongs

PARTS = ("dynamics", "prior", "attention_prior", "heads")
"""What reads h. All else of the model stays as it is, to the last bit."""
ROWS, SHOWN, WARMUP, LARGEST_NORM = 64, 16, 50, 100.0
"""Windows of a step, those of them whose maps are predicted too, steps until the full rate, largest gradient norm."""
AVERAGED = 0.98
"""Share of the averaged weights that a step keeps, once there are many."""
EVERY, KEPT_ASIDE, PATIENCE, TOLD = 25, 256, 1.5, 100
"""Steps between two looks at the windows kept aside, their number, how far beyond the best step to go on, and steps
between two lines of progress."""
FEW = 20
"""With fewer episodes the ones kept aside are worth learning from."""


@dataclass(frozen=True)
class Refit:
    """A model whose parts of `PARTS` are new, and how that went."""

    model: WorldModel
    step: int
    """Steps behind its weights: the best for the windows kept aside."""
    nats: float
    """Cost of z in nats a frame there."""


def refit(
    model: WorldModel,
    store: Episodes,
    tasks: Sequence[Task],
    weights: LossConfig,
    length: int,
    steps: int = 2000,
    rate: float = 2e-3,
    seed: int = 0,
    note: Callable[[str], None] = print,
) -> Refit:
    """Fit dynamics, prior, top-down attention and heads of a copy of `model` to its latents of the episodes of `store`.

    They start anew. A tenth of the episodes, the last ones and at least one, is kept aside: the fit ends well beyond
    the step that is best there, or after `steps`. Where that leaves few episodes, they then learn from all for as many
    steps as were best. Nothing is seen or drawn: of the record of a pass, the terms of a task with a head may read what
    belongs to z, h, prior and maps.

    Args:
        model: a trained model, which stays as it is.
        store: training episodes.
        tasks: those of the training; the ones with a head are fitted.
        weights: of their losses.
        length: frames of a window, T.
        steps: most steps.
        rate: learning rate.
        seed: of first weights, windows and draws.
        note: gets lines of progress.

    Raises:
        UserError: fewer than two episodes have a window.
    """
    note(f"perceiving the frames of {len(store.lengths)} episodes")
    with evaluating(model):
        recording = perceive(model, store, length)
    episodes, aside = len(recording.lengths), max(1, len(recording.lengths) // 10)
    held = recording.firsts(length, range(episodes - aside, episodes))
    held = held[torch.linspace(0, len(held) - 1, min(KEPT_ASIDE, len(held))).round().long()]
    windows = recording.frames.windows(held, length)
    objective = _Objective(tasks, weights, recording.example)

    def learn(last: int) -> Iterator[tuple[int, WorldModel]]:
        """Learn from the first `last` episodes."""
        new, firsts = _renewed(model, tasks, seed), recording.firsts(length, range(last))
        return _steps(new, objective, recording.frames, firsts, length, rate, seed)

    best, began = None, time.perf_counter()
    for step, averaged in islice(learn(episodes - aside), steps):
        if step % EVERY and step < steps:
            continue
        nats = objective.nats(averaged, windows, seed)
        if best is None or nats < best[0]:
            best = nats, step, deepcopy(averaged)
        if step % TOLD == 0:
            left = (time.perf_counter() - began) / step * (steps - step)
            note(f"step {step}/{steps} | z costs {nats:.1f} nats a frame kept aside | at most {left:.0f} s left")
        if step > PATIENCE * best[1] + 4 * EVERY:
            break
    assert best is not None  # there is at least one step
    nats, step, chosen = best
    note(f"step {step} was best: z costs {nats:.1f} nats a frame kept aside")
    if episodes < FEW:
        note(f"now {step} steps on all {episodes} episodes, those kept aside too")
        chosen = next(islice(learn(episodes), step - 1, None))[1]
    for parameter, own in zip(chosen.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
    return Refit(chosen, step, nats)


def _steps(
    new: WorldModel,
    objective: "_Objective",
    frames: Perceived,
    firsts: Tensor,
    length: int,
    rate: float,
    seed: int,
) -> Iterator[tuple[int, WorldModel]]:
    """Steps of `new` without end, on windows that begin at the frames `firsts`; the model of averaged weights."""
    averaged = deepcopy(new)
    learning, slow = _fitted(new), [p.detach() for p in _fitted(averaged)]
    optimiser = torch.optim.AdamW(learning, lr=rate, betas=(0.9, 0.95))
    warm = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / WARMUP, total_iters=WARMUP)
    generator = torch.Generator().manual_seed(seed)
    for step in count(1):
        chosen = torch.randint(len(firsts), (ROWS,), generator=generator)
        loss = objective.loss(new, frames.windows(firsts[chosen], length), generator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, LARGEST_NORM)
        optimiser.step()
        warm.step()
        torch._foreach_lerp_(slow, [p.detach() for p in learning], max(1 - AVERAGED, 9 / (10 + step)))
        yield step, averaged


def _fitted(model: WorldModel) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _renewed(model: WorldModel, tasks: Sequence[Task], seed: int) -> WorldModel:
    """A copy of `model` with first weights in `PARTS`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = WorldModel.from_config(model.config)
        new.add_heads(tasks)
    fresh = {name for name, _ in new.named_parameters() if belongs(name, PARTS)}
    new.load_state_dict({k: v for k, v in model.state_dict().items() if k not in fresh}, strict=False)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name in fresh)
    return new.to(model.mean_frame.device).eval()


@dataclass(frozen=True)
class _Objective:
    """What the fitted parts of a model are judged by."""

    tasks: Sequence[Task]
    weights: LossConfig
    example: SequenceOutputs
    """A record of a pass, of which everything that is fitted is replaced."""

    def loss(self, model: WorldModel, windows: Perceived, generator: torch.Generator) -> Tensor:
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
        noise = torch.randn(2, *windows.mean.shape, generator=torch.Generator().manual_seed(seed))
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
