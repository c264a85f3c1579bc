"""Open-loop prediction by horizon, next to baselines that need no model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import evaluating, psnr
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.task import Task

OPEN_LOOP_STRIDE = 10
"""Windows start at the multiples of this in every held-out episode."""
PARTNERS = 32
"""Windows in a batch. It holds all windows of the recorded sample, so half a batch away is another episode."""
ROWS = 2
"""Windows imagined at once: all frames of all their futures are in memory."""
HORIZONS = (1, 2, 5, 10, 15, 20, 30, 50)
"""Horizons in the table, in frames ahead."""


@dataclass(frozen=True)
class OpenLoop:
    """Values by horizon: float64 tensors [horizon], entry 0 one frame ahead; over all windows and futures."""

    psnr: dict[str, Tensor]
    """Mean PSNR in dB by prediction (see `open_loop_psnr`)."""
    errors: dict[str, Tensor]
    """Root mean squared errors by target of the tasks' heads: the mean of the futures, and the best constant."""
    windows: int
    """Number of windows."""

    def __str__(self) -> str:
        shown = [h for h in HORIZONS if h <= len(self.psnr["one future"])]
        rows = [f"{'frames ahead':34}" + "".join(f"{h:8d}" for h in shown)]
        for values, unit, digits in ((self.psnr, "", 2), (self.errors, ", RMSE", 4)):
            for name, value in values.items():
                rows.append(f"{name + unit:34}" + "".join(f"{value[h - 1]:8.{digits}f}" for h in shown))
        return "\n".join(rows)


@torch.no_grad()
def open_loop_psnr(
    model: WorldModel, windows: Iterable[Batch], context: int = 5, futures: int = 4, tasks: Sequence[Task] = ()
) -> OpenLoop:
    """Imagine the rest of each window from its first `context` frames and its actions, and compare it with the truth.

    "Another window's actions" replace those of the imagined frames by the actions of the window half a batch away, with
    the same random draws: the loss of PSNR shows how much the model uses the actions. It is nan for a batch of one
    window. Draws depend only on a window's place in its batch.

    `windows` are batches such as `backend.evaluation_windows(OPEN_LOOP_STRIDE)`; `futures` are drawn for each window.
    The heads of `tasks` read the imagined states. The model keeps its mode. Raises ValueError if there are no windows.
    """
    judged = []
    with evaluating(model) as device:
        for batch in windows:
            others = batch.actions[:, context - 1 : -1].roll(len(batch) // 2, 0)
            for start in range(0, len(batch), ROWS):
                part, rows = batch.rows(start, start + ROWS).to(device), others[start : start + ROWS].to(device)
                frames, heads = _judge(model, tasks, part, rows, context, futures)
                if len(batch) == 1:
                    frames["mean, another window's actions"].fill_(torch.nan)
                judged.append((frames, heads))
    if not judged:
        raise ValueError("there are no windows to imagine")
    values, pairs = (
        {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}
        for parts in zip(*judged, strict=True)
    )
    errors = {}
    for name, pair in pairs.items():
        predicted, recorded = pair.unbind(1)
        errors[name] = (predicted - recorded).square().mean(0).sqrt()
        errors[f"{name}, best constant"] = (recorded.mean() - recorded).square().mean(0).sqrt()
    return OpenLoop({name: value.mean(0) for name, value in values.items()}, errors, len(values["one future"]))


def _judge(
    model: WorldModel, tasks: Sequence[Task], batch: Batch, others: Tensor, context: int, futures: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """PSNR of frames [B, horizon] by prediction; predicted and recorded values of heads [B, 2, horizon]."""
    frames, shape = batch.frames(), (len(batch), futures)
    truth, last = frames[:, context:], frames[:, context - 1 : context]
    state = model.observe(frames[:, :context], batch.actions[:, :context])
    ahead = model.imagine(state, batch.actions[:, context - 1 : -1], samples=futures)
    elsewhere = model.imagine(state, others, samples=futures)
    imagined, other = (model.decode(x).mean().unflatten(0, shape) for x in (ahead, elsewhere))
    values = {
        "mean of the futures": psnr(imagined.mean(1), truth),
        "one future": psnr(imagined, truth[:, None].expand_as(imagined)).mean(1),
        "mean, another window's actions": psnr(other.mean(1), truth),
        "last frame copied": psnr(last.expand_as(truth), truth),
        "mean training frame": psnr(model.mean_frame.expand_as(truth), truth),
    }
    pairs = {}
    for task in tasks:
        recorded = task.targets(batch)
        for name, value in task.predictions(model.heads[task.name](ahead)).items():
            pairs[name] = torch.stack([value.unflatten(0, shape).mean(1), recorded[name][:, context:]], dim=1)
    return values, pairs
