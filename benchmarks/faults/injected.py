"""Ten faults, each as options of the trainer and a change of its parts before the first step."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from aime_fast.training.trainer import DMCVBTrainer


@dataclass(frozen=True)
class Fault:
    """A fault and the finding that must name it."""

    what: str
    finding: str
    options: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[DMCVBTrainer], None] = lambda trainer: None


@torch.no_grad()
def _one_component(trainer: DMCVBTrainer) -> None:
    prior = trainer.model.prior
    prior.offsets.mul_(200.0)
    prior.offsets[0] = 0.0


def _equal_slots(trainer: DMCVBTrainer) -> None:
    """Every slot starts from the first one's seed."""
    seed, slots = trainer.model.attention.seed, trainer.model.config.num_slots
    own = seed.forward
    seed.forward = lambda context: own(context).chunk(slots, -1)[0].repeat(1, slots)  # type: ignore[method-assign]


@torch.no_grad()
def _frozen_codebook(trainer: DMCVBTrainer) -> None:
    book = trainer.model.tokenizer.codebook
    book.codes.mul_(1e3)
    book.codes[0] = 0.0
    book.sums.copy_(book.codes)
    book.counts.fill_(1.0)  # else the first update places every code on an encoding
    book.decay = 1.0


def _strange_actions(trainer: DMCVBTrainer) -> None:
    """Every window gets the actions of another window of its batch."""
    for backend in (trainer.backend, trainer.validation_backend):
        read = backend.batch
        backend.batch = lambda *of, read=read: _rolled(read(*of))  # type: ignore[method-assign]
        windows = backend.evaluation_windows
        backend.evaluation_windows = lambda stride, windows=windows: map(_rolled, windows(stride))  # type: ignore[method-assign]


def _rolled(batch: Any) -> Any:
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(int(batch.observations.sum())))
    return replace(batch, actions=batch.actions[order].flip(1))


def _slow_data(trainer: DMCVBTrainer) -> None:
    read = trainer.backend.batch

    def slow(*of: Any) -> Any:
        time.sleep(0.6)
        return read(*of)

    trainer.backend.batch = slow  # type: ignore[method-assign]


def _few_windows(trainer: DMCVBTrainer) -> None:
    """Training repeats two noisy batches, whose noise cannot carry over."""
    read, noise = trainer.backend.batch, torch.Generator().manual_seed(0)
    kept = {step: read(step) for step in range(2)}
    for step, batch in kept.items():
        levels = batch.observations + torch.randint(-60, 60, batch.observations.shape, generator=noise)
        kept[step] = replace(batch, observations=levels.clamp(0, 255).to(torch.uint8))
    trainer.backend.batch = lambda step, *of: kept[step % 2]  # type: ignore[method-assign]


@torch.no_grad()
def _not_finite(trainer: DMCVBTrainer) -> None:
    step = trainer.step

    def broken(inputs: Any, beta: float) -> Any:
        if 60 <= trainer.progress.step < 65:
            inputs = replace(inputs, batch=replace(inputs.batch, actions=inputs.batch.actions * float("nan")))
        return step(inputs, beta)

    broken.fetch = step.fetch  # type: ignore[attr-defined]
    trainer.step = broken  # type: ignore[assignment]


FAULTS = (
    Fault(
        "reconstruction counts a ten-thousandth", "kl-collapse", {"losses": {"lambda_recon": 1e-4, "lambda_mean": 0.0}}
    ),
    Fault(
        "all components but one start far away",
        "component-collapse",
        {"losses": {"entropy_weight": 0.0}},
        _one_component,
    ),
    Fault("slots start equal and stay so", "attention-collapse", {}, _equal_slots),
    Fault("a learning rate of 1", "gradient-explosion", {"optim": {"lr": 1.0, "warmup_steps": 150}}),
    Fault("actions that are not a number for five steps", "gradient-explosion", {}, _not_finite),
    Fault("a codebook that is far away and does not move", "dead-codes", {}, _frozen_codebook),
    Fault("actions of other windows, backwards", "ignored-actions", {"steps": 1000}, _strange_actions),
    Fault(
        "the sum of gradients, one weighted 10,000 times",
        "starved-task",
        {"balancing": {"solver": "sum"}, "losses": {"lambda_recon": 1e4}},
    ),
    Fault("two noisy batches again and again", "overfitting", {}, _few_windows),
    Fault("each batch takes 0.6 s to read", "starved-loop", {}, _slow_data),
)
