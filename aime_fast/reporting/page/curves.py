"""The curves of one run or several, as the data that the page draws."""

from collections.abc import Sequence
from typing import Any

from aime_fast.reporting.catalogue import METRICS, Metric, metric
from aime_fast.reporting.page.run_record import RunRecord

POINTS = 400
"""Most points of a curve; longer ones are thinned evenly."""
DIGITS = 5
CHIEF = (
    "psnr",
    "psnr_ahead_5",
    "bits_per_dim",
    "kl_z",
    "action_nats",
    "total_elbo",
    "grad_norm",
    "effective_components",
    "perplexity",
    "mask_overlap",
    "frames_per_second",
    "data_wait",
)
"""Metrics that the page shows at once; the others are folded away by group."""
BESIDE = {"psnr": ("psnr_mean_frame",), "psnr_ahead_5": ("psnr_ahead_5_copy", "psnr_ahead_5_other_actions")}
"""What is drawn into the same chart, for comparison."""
SPLITS = {"val": "held-out", "look": "first held-out batch"}
RESERVED = ("step", "time", "nonfinite")


def charts(runs: Sequence[RunRecord]) -> dict[str, list[dict[str, Any]]]:
    """Charts by group, the first group being `chief`; each with title, unit, healthy range, meaning and lines."""
    names = _names(runs)
    folded = [name for name in names if name not in CHIEF and not any(name in beside for beside in BESIDE.values())]
    groups: dict[str, list[dict[str, Any]]] = {"chief": [_chart(runs, name) for name in CHIEF if name in names]}
    for group in (*dict.fromkeys(entry.group for entry in METRICS), "task"):
        members = [name for name in folded if _group(name) == group]
        if members:
            groups[group] = [_chart(runs, name) for name in members]
    return groups


def _names(runs: Sequence[RunRecord]) -> list[str]:
    found: dict[str, None] = {}
    for run in runs:
        found |= dict.fromkeys(name for name in run.history.names() if name not in RESERVED)
    return list(found)


def _group(name: str) -> str:
    entry = metric(name)
    return entry.group if entry else "task"


def _chart(runs: Sequence[RunRecord], name: str) -> dict[str, Any]:
    entry = metric(name) or Metric(name, "task", "", "-", "a metric of your own task")
    lines = []
    for number, run in enumerate(runs):
        owner = f"{run.name}: " if len(runs) > 1 else ""
        held_out = _held_out(run, name)
        for split, label in (("train", "training"), (held_out, SPLITS[held_out])):
            lines += _line(run, name, split, f"{owner}{label}", number, 2 * (split != "train"))
        for style, other in enumerate(BESIDE.get(name, ()), 1):
            label = other.removeprefix(f"{name}_").removeprefix("psnr_").replace("_", " ")
            lines += _line(run, other, held_out, f"{owner}{label}", number, style)
    return {
        "title": name.replace("_", " "),
        "unit": entry.unit,
        "healthy": entry.healthy,
        "meaning": entry.meaning,
        "lines": lines,
    }


def _held_out(run: RunRecord, name: str) -> str:
    """Validations, or looks at one batch where there are more of them: an epoch may be long."""
    return max(SPLITS, key=lambda split: len(run.history.values(name, split)))


def _line(run: RunRecord, name: str, split: str, label: str, number: int, style: int) -> list[dict[str, Any]]:
    """One line of a chart, with the newest point and every n-th before it; none where the run has no such row."""
    steps, values = run.history.steps(name, split), run.history.values(name, split)
    kept = range(len(values) - 1, -1, -max(1, -(-len(values) // POINTS)))
    if not values:
        return []
    x, y = [steps[i] for i in reversed(kept)], [float(f"{values[i]:.{DIGITS}g}") for i in reversed(kept)]
    return [{"name": label, "run": number, "style": style, "x": x, "y": y}]
