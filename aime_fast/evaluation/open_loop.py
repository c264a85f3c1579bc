"""Open-loop prediction by horizon, next to predictions that need no model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import CEILING, Measure, evaluating, moving_psnr, psnr
from aime_fast.evaluation.windows import Windows
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.task import Task

AT_ONCE = 60
"""Frames of one future that are imagined at once, of several windows: those of all futures are in memory."""
FUTURES = 4
"""Futures drawn for each window."""
MEAN, ONE, OTHER = "mean of the futures", "one future", "mean, another window's actions"
OTHER_TRUTH = "mean, another's actions, their own truth"
HORIZONS = (1, 2, 5, 10, 15, 30, 50)
"""Frames ahead in tables, as far as episodes allow."""
COPY, CONSTANT = "last frame copied", "mean training frame"

ByName = dict[str, Tensor]
Baseline = Callable[[Tensor, Tensor], Tensor]
"""Context frames [B, c, 3, H, W] and actions [B, c-1+h, A] -> predicted frames [B, h, 3, H, W]."""
Features = Callable[[Tensor], Tensor]
"""Frames [B, T, 3, H, W] in [-1, 1] -> n vectors of each window, [B, n, D]."""
SEEN = "recorded"
"""Among the features: those of the recorded frames."""


@dataclass(frozen=True)
class Yardsticks:
    """What predictions are measured by besides PSNR, by name."""

    frames: Mapping[str, Measure] = field(default_factory=dict)
    """Compare frame by frame, at the horizons `shown` only: they take longer than PSNR."""
    clips: Mapping[str, Features] = field(default_factory=dict)
    """Features of whole windows, whose distributions are compared afterwards."""


@dataclass(frozen=True)
class OpenLoop:
    """Values of each window by horizon, float64 [W, horizon]: column 0 is one frame ahead."""

    psnr: ByName
    """PSNR in dB by prediction, at most `CEILING`."""
    moving: ByName
    """The same over the pixels that move; nan where none does."""
    errors: ByName
    """Root mean squared errors [horizon] by target of the tasks' heads: the mean of the futures, the best constant."""
    frames: dict[str, ByName]
    """By measure of `Yardsticks.frames` and prediction; nan where it was not asked."""
    clips: dict[str, ByName]
    """By features of `Yardsticks.clips` and prediction: float64 [W, n, D]. Of several futures the first one."""


@torch.no_grad()
def open_loop_psnr(
    model: WorldModel,
    windows: Windows,
    context: int = 5,
    futures: int = FUTURES,
    tasks: Sequence[Task] = (),
    baselines: dict[str, Baseline] | None = None,
    other_truth: Tensor | None = None,
    yardsticks: Yardsticks = Yardsticks(),
) -> OpenLoop:
    """Imagine the rest of each window from its first `context` frames and its actions, and compare it with the truth.

    "Another window's actions" replace those of the imagined frames by the actions of the window's partner, with the
    same random draws: the loss of PSNR shows how much the model uses the actions. It is nan for a window alone.
    `other_truth`, uint8 [W, horizon, H, W, 3], is what these actions would have led to. Draws depend only on a window's
    place. Each of `baselines` also predicts with both actions. The heads of `tasks` read the imagined states. The model
    keeps its mode.
    """
    found: dict[str, list[ByName]] = {name: [] for name in ("psnr", "moving", "heads")}
    seen = {name: list[ByName]() for name in yardsticks.frames}
    clips = {name: list[ByName]() for name in yardsticks.clips}
    with evaluating(model) as device:
        for rows, here in windows.parts(max(1, AT_ONCE // (windows.length - context))):
            batch, partner = here.to(device), windows.batch(windows.partners[rows]).to(device)
            actions = torch.cat([batch.actions[:, : context - 1], partner.actions[:, context - 1 : -1]], 1)
            frames, read = _predictions(model, tasks, batch, actions, context, futures)
            for name, predict in (baselines or {}).items():
                frames[name] = predict(batch.frames()[:, :context], batch.actions[:, :-1])
                frames[f"{name}, another's actions"] = predict(batch.frames()[:, :context], actions)
            truth = batch.frames()
            whole, part = _scores(frames, truth[:, context:], windows.moving(rows, batch)[:, context:])
            if other_truth is not None:
                there = replace(batch, observations=other_truth[rows].to(device))
                more = _scores({OTHER_TRUTH: frames[OTHER]}, there.frames(), windows.moving(rows, there))
                whole, part = whole | more[0], part | more[1]
            for name, values in (("psnr", whole), ("moving", part), ("heads", read)):
                found[name].append(values)
            for name, measure in yardsticks.frames.items():
                seen[name].append(_sparsely(measure, frames, truth[:, context:]))
            for name, features in yardsticks.clips.items():
                clips[name].append(_clip_features(features, frames, truth, context))
    by_frame = {name: _joined(values) for name, values in {**found, **seen}.items()}
    if len(windows) == 1:
        for values in by_frame.values():
            values |= {name: torch.full_like(x, torch.nan) for name, x in values.items() if "another" in name}
    return OpenLoop(
        by_frame.pop("psnr"),
        by_frame.pop("moving"),
        dict(_head_errors(by_frame.pop("heads"))),
        by_frame,
        {name: _joined(values) for name, values in clips.items()},
    )


def shown(horizon: int) -> list[int]:
    """The frames ahead in the tables of this horizon, which is the last one."""
    return [*(h for h in HORIZONS if h < horizon), horizon]


def _sparsely(measure: Measure, predictions: ByName, truth: Tensor) -> ByName:
    """Values [B, horizon] of each prediction at the horizons `shown`, else nan; several futures are averaged."""
    columns = [h - 1 for h in shown(truth.shape[1])]
    found: ByName = {}
    for name, frames in predictions.items():
        several = frames.ndim > truth.ndim
        made, target = frames[..., columns, :, :, :], truth[:, columns]
        values = measure(made, (target[:, None] if several else target).expand_as(made))
        found[name] = truth.new_full(truth.shape[:2], torch.nan)
        found[name][:, columns] = (values.mean(1) if several else values).to(truth)
    return found


def _clip_features(features: Features, predictions: ByName, frames: Tensor, context: int) -> ByName:
    """Features of the window [B, T, 3, H, W] as it is, and with each prediction after its context."""
    first = {name: made[:, 0] if made.ndim > frames.ndim else made for name, made in predictions.items()}
    own = {name: made for name, made in first.items() if "another" not in name}
    return {
        SEEN: features(frames),
        **{name: features(torch.cat([frames[:, :context], made], 1)) for name, made in own.items()},
    }


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
