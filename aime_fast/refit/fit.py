"""Fits the parts that h belongs to, to the latents of a finished model.

While a model trains its z moves, and LSTM and prior follow a z that will be another one soon. On a finished z they
learn more of the actions in minutes than in the whole training (docs/log.md). Where there are few frames, they have
learnt them by heart; here predictions of training episodes that are kept aside say when to stop.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor, nn

from aime_fast.config import LossConfig
from aime_fast.data.store import Episodes
from aime_fast.errors import UserError
from aime_fast.evaluation.metrics import evaluating
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.ahead import error_ahead
from aime_fast.refit.choice import STEPS, fit_choice
from aime_fast.refit.objective import Objective
from aime_fast.refit.perceived import Perceived, perceive, spread
from aime_fast.tasks.task import Task, belongs

PARTS = ("dynamics", "prior", "attention_prior", "heads")
"""What reads h. It starts anew; of all else only the decoder's `keeping` changes, from what it is (`choice.py`)."""
ROWS, WARMUP, LARGEST_NORM = 64, 50, 100.0
"""Windows of a step, steps until the full rate, largest norm of the gradient."""
AVERAGED = 0.98
"""Share of the averaged weights that a step keeps, once there are many."""
EVERY, KEPT_ASIDE, TOLD = 25, 256, 100
"""Steps between two looks at the windows kept aside, their number, and steps between two lines of progress."""
LEAST, PATIENCE = 600, 1.5
"""Steps that are always taken, since predictions may get worse before they get better, and how far beyond the best step
to go on."""
FEW = 20
"""With fewer episodes the ones kept aside are worth learning from."""


@dataclass(frozen=True)
class Refit:
    """A model whose parts of `PARTS` are new, and how that went."""

    model: WorldModel
    step: int
    """Steps behind its weights: the best for predictions of the windows kept aside."""
    error: float
    """Error of these predictions in dB (`ahead.error_ahead`)."""
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
    held_out: Episodes | None = None,
) -> Refit:
    """Fit dynamics, prior, top-down attention and heads of a copy of `model` to its latents of the episodes of `store`.

    They start anew. A tenth of the episodes, the last ones and at least one, is kept aside: the fit ends well beyond
    the step that predicts best there, or after `steps`. Where that leaves few episodes, they then learn from all for as
    many steps as were best. Nothing is seen or drawn: of the record of a pass, the terms of a task with a head may read
    what belongs to z, h, prior and maps. At last the decoder's choice of what is kept learns from frames that the new
    parts imagine (`choice.py`).

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
        held_out: say whether the new choice is better; None: the choice stays as it is.

    Raises:
        UserError: fewer than two episodes have a window, no held-out one has, or a window has one frame.
    """
    if length < 2:
        raise UserError("windows have one frame, and dynamics learn from what follows it; train with longer ones")
    note(f"perceiving the frames of {len(store.lengths)} episodes")
    with evaluating(model):
        recording = perceive(model, store, length)
    episodes, aside = len(recording.lengths), max(1, len(recording.lengths) // 10)
    held = spread(recording.firsts(length, range(episodes - aside, episodes)), KEPT_ASIDE)
    windows = recording.frames.windows(held, length).to(model.mean_frame.device)
    objective = Objective(tasks, weights, recording.example)

    def learn(last: int) -> Iterator[tuple[int, WorldModel]]:
        """Learn from the first `last` episodes."""
        new, firsts = _renewed(model, tasks, seed), recording.firsts(length, range(last))
        return _steps(new, objective, recording.frames, firsts, length, rate, seed)

    best, began = None, time.perf_counter()
    for step, averaged in islice(learn(episodes - aside), steps):
        if step % EVERY and step < steps:
            continue
        error = error_ahead(averaged, windows, seed)
        if best is None or error < best[0]:
            best = error, step, deepcopy(averaged)
        if step % TOLD == 0:
            left = (time.perf_counter() - began) / step * (steps - step)
            note(f"step {step}/{steps} | error ahead {error:.2f} dB, kept aside | at most {left:.0f} s left")
        if step >= max(LEAST, PATIENCE * best[1]):
            break
    assert best is not None  # there is at least one step
    error, step, chosen = best
    nats = objective.nats(chosen, windows, seed)
    note(f"step {step} was best: error ahead {error:.2f} dB, z costs {nats:.1f} nats a frame, kept aside")
    if episodes < FEW:
        note(f"now {step} steps on all {episodes} episodes, those kept aside too")
        chosen = next(islice(learn(episodes), step - 1, None))[1]
    if held_out is not None:
        better = fit_choice(chosen, store, recording, held_out, length, weights, min(STEPS, steps), seed)
        told = "has learnt from imagined frames too" if better else "stays as it was: new ones did worse"
        note(f"the choice of what is kept of older frames {told}")
    for parameter, own in zip(chosen.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
    return Refit(chosen, step, error, nats)


def _steps(
    new: WorldModel,
    objective: Objective,
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
