"""Open-loop prediction by horizon, next to predictions that need no model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import CEILING, evaluating, moving_psnr, psnr
from aime_fast.evaluation.windows import Windows
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.task import Task

ROWS = 2
"""Windows imagined at once: all frames of all their futures are in memory."""
FUTURES = 4
"""Futures drawn for each window."""
MEAN, ONE, OTHER = "mean of the futures", "one future", "mean, another window's actions"
OTHER_TRUTH = "mean, another's actions, their own truth"
COPY, CONSTANT = "last frame copied", "mean training frame"

ByName = dict[str, Tensor]
Baseline = Callable[[Tensor, Tensor], Tensor]
"""Context frames [B, c, 3, H, W] and actions [B, c-1+h, A] -> predicted frames [B, h, 3, H, W]."""


@dataclass(frozen=True)
class OpenLoop:
    """Values of each window by horizon, float64 [W, horizon]: column 0 is one frame ahead."""

    psnr: dict[str, Tensor]
    """PSNR in dB by prediction, at most `CEILING`."""
    moving: dict[str, Tensor]
    """The same over the pixels that move; nan where none does."""
    errors: dict[str, Tensor]
    """Root mean squared errors [horizon] by target of the tasks' heads: the mean of the futures, the best constant."""


@dataclass(frozen=True)
class Reconstruction:
    """Mean over the frames of each window, float64 [W]."""

    psnr: Tensor
    """PSNR of the decoder's mean at the posterior mean, in dB."""
    moving: Tensor
    """The same over the pixels that move."""


@torch.no_grad()
def reconstruction_psnr(model: WorldModel, windows: Windows) -> Reconstruction:
    """PSNR of the decoder's mean at the posterior mean, per frame, then averaged. The model keeps its mode."""
    values = []
    with evaluating(model) as device:
        for rows, batch in windows.parts():
            on_device = batch.to(device)
            frames = on_device.frames()
            made = model.reconstruct(model(frames, on_device.actions))
            moving = windows.moving(rows, on_device)
            whole, part = _capped(psnr(made, frames)), _capped(moving_psnr(made, frames, moving))
            values.append(torch.stack([whole.mean(1), part.nanmean(1)]).double().cpu())
    return Reconstruction(*torch.cat(values, 1))


@torch.no_grad()
def open_loop_psnr(
    model: WorldModel,
    windows: Windows,
    context: int = 5,
    futures: int = FUTURES,
    tasks: Sequence[Task] = (),
    baselines: dict[str, Baseline] | None = None,
    other_truth: Tensor | None = None,
) -> OpenLoop:
    """Imagine the rest of each window from its first `context` frames and its actions, and compare it with the truth.

    "Another window's actions" replace those of the imagined frames by the actions of the window's partner, with the
    same random draws: the loss of PSNR shows how much the model uses the actions. It is nan for a window alone.
    `other_truth`, uint8 [W, horizon, H, W, 3], is what these actions would have led to. Draws depend only on a window's
    place. Each of `baselines` also predicts with both actions. The heads of `tasks` read the imagined states. The model
    keeps its mode.
    """
    wholes, parts, heads = list[ByName](), list[ByName](), list[ByName]()
    with evaluating(model) as device:
        for rows, here in windows.parts(ROWS):
            batch, partner = here.to(device), windows.batch(windows.partners[rows]).to(device)
            actions = torch.cat([batch.actions[:, : context - 1], partner.actions[:, context - 1 : -1]], 1)
            frames, read = _predictions(model, tasks, batch, actions, context, futures)
            for name, predict in (baselines or {}).items():
                frames[name] = predict(batch.frames()[:, :context], batch.actions[:, :-1])
                frames[f"{name}, another's actions"] = predict(batch.frames()[:, :context], actions)
            whole, part = _scores(frames, batch.frames()[:, context:], windows.moving(rows, batch)[:, context:])
            if other_truth is not None:
                there = Batch(other_truth[rows].to(device), batch.actions, batch.rewards, batch.dones)
                more = _scores({OTHER_TRUTH: frames[OTHER]}, there.frames(), windows.moving(rows, there))
                whole, part = whole | more[0], part | more[1]
            wholes.append(whole)
            parts.append(part)
            heads.append(read)
    whole, part = _joined(wholes), _joined(parts)
    if len(windows) == 1:
        for values in (whole, part):
            values |= {name: torch.full_like(x, torch.nan) for name, x in values.items() if "another" in name}
    return OpenLoop(whole, part, dict(_head_errors(_joined(heads))))


def _predictions(
    model: WorldModel, tasks: Sequence[Task], batch: Batch, other_actions: Tensor, context: int, futures: int
) -> tuple[ByName, ByName]:
    """Frames [B, (futures,) horizon, 3, H, W] by prediction; predicted and recorded values of heads [B, 2, horizon]."""
    frames, shape = batch.frames(), (len(batch), futures)
    truth, last = frames[:, context:], frames[:, context - 1 : context]
    state = model.observe(frames[:, :context], batch.actions[:, :context])
    ahead = model.imagine(state, batch.actions[:, context - 1 : -1], samples=futures)
    elsewhere = model.imagine(state, other_actions[:, context - 1 :], samples=futures)
    imagined, other = (model.decode(x).mean().unflatten(0, shape) for x in (ahead, elsewhere))
    predictions = {
        MEAN: imagined.mean(1),
        ONE: imagined,
        OTHER: other.mean(1),
        COPY: last.expand_as(truth),
        CONSTANT: model.mean_frame.expand_as(truth),
    }
    pairs = {}
    for task in tasks:
        recorded = task.targets(batch)
        for name, value in task.predictions(model.heads[task.name](ahead)).items():
            pairs[name] = torch.stack([value.unflatten(0, shape).mean(1), recorded[name][:, context:]], dim=1)
    return predictions, pairs


def _scores(predictions: ByName, truth: Tensor, moving: Tensor) -> tuple[ByName, ByName]:
    """PSNR, and PSNR over moving pixels, of each prediction: [B, horizon]; several futures are averaged."""
    whole: ByName = {}
    part: ByName = {}
    for name, frames in predictions.items():
        target, mask = truth, moving
        if frames.ndim > truth.ndim:
            target, mask = truth[:, None].expand_as(frames), moving[:, None].expand(*frames.shape[:3], -1, -1)
        scores = [_capped(psnr(frames, target)), _capped(moving_psnr(frames, target, mask))]
        whole[name], part[name] = (x.mean(1) if frames.ndim > truth.ndim else x for x in scores)
    return whole, part


def _capped(decibels: Tensor) -> Tensor:
    return decibels.clamp_max(CEILING)


def _joined(parts: list[ByName]) -> ByName:
    return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}


def _head_errors(pairs: ByName) -> Iterable[tuple[str, Tensor]]:
    for name, pair in pairs.items():
        predicted, recorded = pair.unbind(1)
        yield name, (predicted - recorded).square().mean(0).sqrt()
        yield f"{name}, best constant", (recorded.mean() - recorded).square().mean(0).sqrt()
