"""What each part of a trained model is worth: what it costs to replace it by its trivial counterpart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aime_fast.evaluation.intervals import Estimate, mean_over
from aime_fast.evaluation.metrics import CEILING, evaluating, psnr
from aime_fast.evaluation.windows import Windows
from aime_fast.evaluation.worth.counterparts import COUNTERPARTS, Counterpart, filtering_draws, find_facts
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_kernels import gaussian_log_density

HORIZONS = (1, 5, 10)
"""Frames ahead in the table; 0 is the reconstruction."""
WINDOWS, FIT_WINDOWS = 96, 64
"""Largest numbers of held-out windows that are judged and of training windows that counterparts are fitted to."""
NATS = "nats"


@dataclass(frozen=True)
class Part:
    """One row of the table."""

    name: str
    costs: dict[str, Estimate]
    """By column (`0`, `1`, `5`, `10` in dB, `nats`): how much worse the model is with the counterpart."""
    missing: str | None = None
    """Why the model has no such part."""


@dataclass(frozen=True)
class Parts:
    """The table of parts."""

    whole: dict[str, Estimate]
    """The model as it is, by column: PSNR in dB, and kl_z in nats a frame."""
    rows: list[Part]

    def __str__(self) -> str:
        head = "".join(f"{name:>15}" for name in (f"{h} dB" for h in self.whole if h != NATS)) + f"{NATS:>15}"
        lines = [f"{'replaced by its counterpart':38}{head}", _row("nothing (PSNR, kl_z)", self.whole)]
        lines += [
            f"{row.name:38}left out: {row.missing}" if row.missing else _row(row.name, row.costs) for row in self.rows
        ]
        return "\n".join(lines)


def _row(name: str, values: dict[str, Estimate]) -> str:
    return f"{name:38}" + "".join(f"{value!s:>15}" for value in values.values())


def price_parts(
    model: WorldModel,
    train: Windows,
    held_out: Windows,
    context: int,
    counterparts: Sequence[Counterpart] = COUNTERPARTS,
    note: Callable[[str], None] = lambda line: None,
) -> Parts:
    """Judge the model on `held_out` windows as it is, and with each of the `counterparts`, fitted to `train`.

    All runs use the same random numbers. `note` is told which part is next. The model is as before at the end.
    """
    facts = find_facts(model, train)
    whole, rows = measure(model, held_out, context), []
    for part in counterparts:
        if reason := part.missing(model, facts):
            rows.append(Part(part.name, {}, reason))
            continue
        note(f"parts: {part.name}")
        with part.standing_in(model, facts):
            without = measure(model, held_out, context)
        worse = {name: without[name] - x if name == NATS else x - without[name] for name, x in whole.items()}
        rows.append(Part(part.name, _estimates(worse, held_out)))
    return Parts(_estimates(whole, held_out), rows)


def _estimates(values: dict[str, Tensor], windows: Windows) -> dict[str, Estimate]:
    return {name: mean_over(x.numpy(), windows.episodes) for name, x in values.items()}


@torch.no_grad()
def measure(model: WorldModel, windows: Windows, context: int, futures: int = 4) -> dict[str, Tensor]:
    """Values of each window, float64 [W]: PSNR in dB at 0 (reconstruction) and at `HORIZONS`, and kl_z in nats.

    Predictions are means of the futures. kl_z is of frames 1 .. T-1, which have a past, without carried noise.
    """
    horizon = windows.length - context
    shown = [h for h in HORIZONS if h <= horizon]
    collected: dict[str, list[Tensor]] = {name: [] for name in ("0", *map(str, shown), NATS)}
    with evaluating(model) as device:
        for rows, batch in windows.parts():
            on_device = batch.to(device)
            frames, actions = on_device.frames(), on_device.actions
            outputs = model(frames, actions, filtering_draws(model, int(rows[0]), *frames.shape[:2]))
            collected["0"].append(_decibels(model.reconstruct(outputs), frames).mean(1))
            collected[NATS].append(kl_of_frames(outputs)[:, 1:].mean(1))
            state = model.observe(frames[:, :context], actions[:, :context])
            ahead = model.imagine(state, actions[:, context - 1 : -1], samples=futures, key=int(rows[0]))
            imagined = model.decode(ahead).mean().unflatten(0, (len(rows), futures)).mean(1)
            scores = _decibels(imagined, frames[:, context:])
            for h in shown:
                collected[str(h)].append(scores[:, h - 1])
    return {name: torch.cat(parts).double().cpu() for name, parts in collected.items()}


def kl_of_frames(outputs: SequenceOutputs) -> Tensor:
    """Monte Carlo estimate of KL(q(z_t) || p(z_t)) of every frame in nats, [B, T]."""
    mean, log_var = outputs.posterior_mean.float()[:, :, None], outputs.posterior_log_var.float()[:, :, None]
    log_q = gaussian_log_density(outputs.samples, mean, log_var)
    return (log_q - outputs.prior.log_prob(outputs.samples)).mean(-1)


def _decibels(prediction: Tensor, target: Tensor) -> Tensor:
    return psnr(prediction, target).clamp_max(CEILING)
