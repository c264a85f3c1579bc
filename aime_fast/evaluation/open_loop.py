"""Open-loop prediction by horizon, next to baselines that need no model."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

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
    """Values by horizon: float64 tensors [horizon], entry 0 one frame ahead; means over windows (and futures)."""

    expected: Tensor
    """PSNR in dB of the mean of a window's futures."""
    future: Tensor
    """PSNR of one future."""
    other_actions: Tensor
    """PSNR of the mean of futures under another window's actions; nan if there is one window only."""
    last_frame: Tensor
    """PSNR of the last context frame."""
    mean_frame: Tensor
    """PSNR of the mean training frame."""
    windows: int
    """Number of windows."""
    errors: dict[str, Tensor] = field(default_factory=dict)
    """What the tasks' heads predict: root mean squared errors, of the mean of the futures and of the best constant."""

    def __str__(self) -> str:
        rows = {
            "mean of the futures": self.expected,
            "one future": self.future,
            "mean, another window's actions": self.other_actions,
            "last frame copied": self.last_frame,
            "mean training frame": self.mean_frame,
        }
        shown = [h for h in HORIZONS if h <= len(self.expected)]
        lines = [f"{'frames ahead':32}" + "".join(f"{h:8d}" for h in shown)]
        lines += [_line(name, values, shown, 2) for name, values in rows.items()]
        lines += [_line(f"{name}, RMSE", values, shown, 4) for name, values in self.errors.items()]
        return "\n".join(lines)


def _line(name: str, values: Tensor, horizons: list[int], digits: int) -> str:
    return f"{name:32}" + "".join(f"{values[h - 1]:8.{digits}f}" for h in horizons)


@torch.no_grad()
def open_loop_psnr(
    model: WorldModel, windows: Iterable[Batch], context: int = 5, futures: int = 4, tasks: Sequence[Task] = ()
) -> OpenLoop:
    """Imagine the rest of each window from its first `context` frames and its actions.

    "Another window" is half a batch away; its actions replace those of the imagined frames, with the same random
    draws. The loss of PSNR is how much the model uses the actions. Draws depend only on a window's place in its batch.

    Args:
        model: keeps its mode.
        windows: batches such as `backend.evaluation_windows(OPEN_LOOP_STRIDE)`.
        context: observed frames of each window.
        futures: futures drawn for each window.
        tasks: tasks whose heads are evaluated on the imagined states.

    Raises:
        ValueError: there are no windows.
    """
    kept: dict[str, list[Tensor]] = defaultdict(list)
    with evaluating(model) as device:
        for batch in windows:
            others = batch.actions[:, context - 1 : -1].roll(len(batch) // 2, 0)
            for start in range(0, len(batch), ROWS):
                part, rows = batch.rows(start, start + ROWS).to(device), others[start : start + ROWS].to(device)
                values = _judge(model, tasks, part, rows, context, futures)
                if len(batch) == 1:
                    values["other_actions"].fill_(torch.nan)
                for name, value in values.items():
                    kept[name].append(value.double().cpu())
    if not kept:
        raise ValueError("there are no windows to imagine")
    joined = {name: torch.cat(values) for name, values in kept.items()}
    count = len(joined["expected"])
    values = {item.name: joined.pop(item.name).mean(0) for item in fields(OpenLoop)[:5]}
    errors = {}
    for name, pairs in joined.items():
        predicted, truth = pairs.unbind(1)
        errors[name] = _rms(predicted - truth)
        errors[f"{name}, best constant"] = _rms(truth.mean() - truth)
    return OpenLoop(**values, windows=count, errors=errors)


def _rms(error: Tensor) -> Tensor:
    """Root mean square over windows: [N, horizon] -> [horizon]."""
    return error.square().mean(0).sqrt()


def _judge(
    model: WorldModel, tasks: Sequence[Task], batch: Batch, others: Tensor, context: int, futures: int
) -> dict[str, Tensor]:
    """PSNR of each window by the names of `OpenLoop`, [B, horizon]; predictions and truth of heads, [B, 2, horizon]."""
    frames = batch.frames()
    truth, last = frames[:, context:], frames[:, context - 1 : context]
    state = model.observe(frames[:, :context], batch.actions[:, :context])
    ahead, elsewhere = (
        model.imagine(state, actions, samples=futures) for actions in (batch.actions[:, context - 1 : -1], others)
    )
    imagined, other = (model.decode(x).mean().unflatten(0, (len(batch), futures)) for x in (ahead, elsewhere))
    values = {
        "expected": psnr(imagined.mean(1), truth),
        "future": psnr(imagined, truth[:, None].expand_as(imagined)).mean(1),
        "other_actions": psnr(other.mean(1), truth),
        "last_frame": psnr(last.expand_as(truth), truth),
        "mean_frame": psnr(model.mean_frame.expand_as(truth), truth),
    }
    for task in tasks:
        recorded = task.targets(batch)
        for name, value in task.predictions(model.heads[task.name](ahead)).items():
            predicted = value.unflatten(0, (len(batch), futures)).mean(1)
            values[name] = torch.stack([predicted, recorded[name][:, context:]], dim=1)
    return values
