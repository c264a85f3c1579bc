"""Every figure that a run has data for, with its name and its caption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from aime_fast.reporting.charts import curves, frames, gradients, mixture, slots
from aime_fast.reporting.charts.horizon import horizon
from aime_fast.reporting.page.run_record import RunRecord

HORIZONS = (1, 5, 10)
"""Frames ahead that validation measures."""
ENDINGS = {"": "model", "_other_actions": "another window's actions", "_copy": "last frame copied"}
Points = dict[int, tuple[float, float, float]]
"""Frames ahead -> (PSNR in dB, low and high end of its interval)."""


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn when it is asked for."""

    name: str
    """Of its file, without suffix."""
    caption: str
    draw: Callable[[], Figure]


def drawings(run: RunRecord) -> list[Drawing]:
    """The figures, in the order of the page; none for a run without a row."""
    found, seen, history = list[Drawing](), run.snapshot, run.history
    if history.values("mean_error") or history.values("psnr", "val"):
        found.append(Drawing("learning", "Learning curves", lambda: curves.learning(history)))
    if seen is not None:
        found += [
            Drawing("reconstructions", "Held-out frames, rebuilt and predicted", lambda: frames.reconstructions(seen)),
            Drawing("masks", "Share of each slot in each cell", lambda: slots.masks(seen)),
            Drawing("attention", "Where the slots look", lambda: slots.attention(seen)),
            Drawing("centres", "How they move", lambda: slots.centres(seen)),
            Drawing("mixture", "The mixture over a window", lambda: mixture.over_time(seen)),
            Drawing("usage", "Use of the components", lambda: mixture.usage(seen)),
            Drawing("sticks", "Sticks", lambda: mixture.sticks(seen)),
            Drawing("latents", "Latents", lambda: mixture.latents(seen)),
            Drawing("codes", "Codebook", lambda: mixture.codes(seen)),
        ]
    if history.values("grad_norm"):
        found.append(Drawing("conflicts", "Conflict of the tasks", lambda: gradients.conflicts(history)))
        found.append(Drawing("angles", "Rotation and swing", lambda: gradients.angles(history)))
    if points := _prediction(run):
        title = "held-out windows, from recorded actions"
        found.append(Drawing("horizon", "Prediction by frames ahead", lambda: horizon(points, title)))
    return found


def _prediction(run: RunRecord) -> dict[str, Points]:
    """PSNR by frames ahead: from the run's evaluation where there is one, else from its last validation."""
    if run.evaluation and run.evaluation.get("psnr"):
        return {name: known for name, values in run.evaluation["psnr"].items() if (known := kept_curve(values))}
    found = {}
    for ending, name in ENDINGS.items():
        points = {h: run.held_out(f"psnr_ahead_{h}{ending}") for h in HORIZONS}
        known = {h: (value, value, value) for h, value in points.items() if value is not None}
        if known:
            found[name] = known
    return found


def kept_curve(values: Sequence[dict[str, Any]]) -> Points:
    """Mean and interval by frames ahead; the interval of a single episode is its mean."""
    known = {h: value for h, value in enumerate(values, 1) if value["mean"] is not None}
    ends = {
        h: [value["mean"] if value[end] is None else value[end] for end in ("low", "high")]
        for h, value in known.items()
    }
    return {h: (value["mean"], ends[h][0], ends[h][1]) for h, value in known.items()}
