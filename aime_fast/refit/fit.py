"""Fits the parts that h belongs to, to the latents of a finished model.

While a model trains its z moves, and LSTM and prior follow a z that will be another one soon. On a finished z they
learn more of the actions in minutes than in the whole training (docs/log.md). Where there are few frames, they have
learnt them by heart; here predictions of training episodes that are kept aside say when to stop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from aime_fast.config import LossConfig
from aime_fast.data.store import Episodes
from aime_fast.errors import UserError
from aime_fast.evaluation.metrics import evaluating
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.ahead import error_ahead
from aime_fast.refit.choice import STEPS, fit_choice
from aime_fast.refit.learning import Aim, Learner
from aime_fast.refit.objective import Objective
from aime_fast.refit.perceived import Perceived, perceive
from aime_fast.tasks.task import Task, belongs

STATE, ATTENTION = ("dynamics", "prior", "heads"), ("attention_prior",)
PARTS = STATE + ATTENTION
"""What reads h. It starts anew; of all else only the decoder's `keeping` changes, from what it is (`choice.py`)."""
ROWS, LEAST, EVERY = 64, 600, 25
"""Of `Aim`, for the state. Predictions may get worse before they get better."""
MAPS_ROWS, MAPS_LEAST, MAPS_EVERY, MAPS_RATE = 16, 200, 100, 1.5
"""The same for the maps, and their learning rate relative to that of the state."""


@dataclass(frozen=True)
class Refit:
    """A model whose parts of `PARTS` are new, and how that went."""

    model: WorldModel
    step: int
    """Steps behind dynamics and prior: the best for predictions of the windows kept aside."""
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
    """Fit dynamics, prior, heads and top-down attention of a copy of `model` to its latents of the episodes of `store`.

    They start anew. A tenth of the episodes, the last ones and at least one, is kept aside: the fit ends well beyond
    the step that predicts best there, or after `steps`. Where that leaves few episodes, they then learn from all for as
    many steps as were best. Nothing is seen or drawn: of the record of a pass, the terms of a task with a head may read
    what belongs to z, h, prior and observed maps. Top-down attention, which only reads h, follows in the same way. At
    last the decoder's choice of what is kept learns from frames that the new parts imagine (`choice.py`).

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
    learner, objective = Learner(recording, length, seed, note), Objective(tasks, weights, recording.example)

    def ahead(new: WorldModel, windows: Perceived) -> float:
        return error_ahead(new, windows, seed)

    told = "error ahead {:.2f} dB"
    state = Aim(STATE, objective.loss, ahead, told, rate, rows=ROWS, least=LEAST, every=EVERY)
    new, step, error = learner.learn(_renewed(model, tasks, seed), state, steps)
    nats = objective.nats(new, learner.windows_aside(new.mean_frame.device), seed)
    note(f"z costs {nats:.1f} nats a frame, kept aside; now where slots will look")
    told, losses = "KL of a map {:.3f} nats", (objective.attention_loss, objective.map_error)
    maps = Aim(ATTENTION, *losses, told, MAPS_RATE * rate, rows=MAPS_ROWS, least=MAPS_LEAST, every=MAPS_EVERY)
    new, _, _ = learner.learn(new, maps, steps)
    if held_out is not None:
        better = fit_choice(new, store, recording, held_out, length, weights, min(STEPS, steps), seed)
        told = "has learnt from imagined frames too" if better else "stays as it was: new ones did worse"
        note(f"the choice of what is kept of older frames {told}")
    for parameter, own in zip(new.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(own.requires_grad)
    return Refit(new, step, error, nats)


def _renewed(model: WorldModel, tasks: Sequence[Task], seed: int) -> WorldModel:
    """A copy of `model` with first weights in `PARTS`, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = WorldModel.from_config(model.config)
        new.add_heads(tasks)
    fresh = {name for name, _ in new.named_parameters() if belongs(name, PARTS)}
    new.load_state_dict({k: v for k, v in model.state_dict().items() if k not in fresh}, strict=False)
    return new.to(model.mean_frame.device).eval()
