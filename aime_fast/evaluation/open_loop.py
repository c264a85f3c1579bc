"""How well frames are foreseen from actions alone, next to what needs no model."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from aime_fast.data.batch import Batch
from aime_fast.evaluation.metrics import psnr

OPEN_LOOP_STRIDE = 10
"""First frames of the windows are the multiples of this in every held-out episode."""
PARTNERS = 32
"""Windows in a batch: those of the recorded sample all in one, so that half a batch away is another episode."""
ROWS = 2
"""Windows imagined at once: the decoder's output for all frames of all their futures is held in memory."""
HORIZONS = (1, 2, 5, 10, 15, 20, 30, 50)
"""Frames ahead that the table shows, as far as they were imagined."""


@dataclass(frozen=True)
class OpenLoop:
    """PSNR in dB by horizon: tensors float64 [horizon], entry 0 one frame ahead; means over windows (and futures)."""

    expected: Tensor
    """The mean of a window's futures."""
    future: Tensor
    """One future."""
    other_actions: Tensor
    """The mean of futures under another window's actions; nan where there was one window only."""
    last_frame: Tensor
    """The last context frame, copied."""
    mean_frame: Tensor
    """The mean training frame."""
    windows: int
    """Windows that were imagined."""

    def __str__(self) -> str:
        shown = [h for h in HORIZONS if h <= len(self.expected)]
        rows = {
            "mean of the futures": self.expected,
            "one future": self.future,
            "mean, another window's actions": self.other_actions,
            "last frame copied": self.last_frame,
            "mean training frame": self.mean_frame,
        }
        lines = [f"{'frames ahead':32}" + "".join(f"{h:7d}" for h in shown)]
        lines += [f"{name:32}" + "".join(f"{values[h - 1]:7.2f}" for h in shown) for name, values in rows.items()]
        return "\n".join(lines)


@torch.no_grad()
def open_loop_psnr(model: Any, windows: Iterable[Batch], context: int = 5, futures: int = 4) -> OpenLoop:
    """Imagine the rest of each window from its first `context` frames and its actions; PSNR with peak 1 in dB.

    `windows` are batches such as `backend.evaluation_windows(OPEN_LOOP_STRIDE)`. "Another window's actions" are those,
    future ones alone, of the window half a batch away, with the same draws: what the model loses by them is what its
    actions tell it. Draws depend on a window's place in its batch alone. The model stays in the mode it was in. Raises
    ValueError where there are no windows.
    """
    device = next(model.parameters()).device
    kept: dict[str, list[Tensor]] = {field.name: [] for field in fields(OpenLoop) if field.name != "windows"}
    for batch in windows:
        others = _exchanged(batch.actions, context)
        for start in range(0, len(batch), ROWS):
            part, rows = batch.rows(start, start + ROWS).to(device), slice(start, start + ROWS)
            values = _judge(model, part, others[rows].to(device), context, futures)
            if len(batch) == 1:
                del values["other_actions"]
            for name, value in values.items():
                kept[name].append(value.double().cpu())
    if not kept["expected"]:
        raise ValueError("there are no windows to imagine")
    means = {name: torch.cat(values).mean(0) for name, values in kept.items() if values}
    means.setdefault("other_actions", torch.full_like(means["expected"], torch.nan))
    return OpenLoop(**means, windows=sum(map(len, kept["expected"])))


def _exchanged(actions: Tensor, context: int) -> Tensor:
    """Actions [B, T, A] with those from the last context frame on of the window half a batch away."""
    past, future = actions[:, : context - 1], actions[:, context - 1 :]
    return torch.cat([past, future.roll(len(actions) // 2, 0)], dim=1)


def _judge(model: Any, batch: Batch, others: Tensor, context: int, futures: int) -> dict[str, Tensor]:
    """The fields of `OpenLoop` for each window, [B, horizon]."""
    frames = batch.frames()
    observed, truth = frames[:, :context], frames[:, context:]
    imagined, elsewhere = (
        model.imagine(observed, actions[:, :-1], samples=futures) for actions in (batch.actions, others)
    )
    return {
        "expected": psnr(imagined.mean(1), truth),
        "future": psnr(imagined, truth[:, None].expand_as(imagined)).mean(1),
        "other_actions": psnr(elsewhere.mean(1), truth),
        "last_frame": psnr(observed[:, -1:].expand_as(truth), truth),
        "mean_frame": psnr(model.mean_frame.expand_as(truth), truth),
    }
