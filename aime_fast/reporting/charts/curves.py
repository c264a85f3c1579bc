"""Learning curves: what a run minimises and how well it rebuilds frames, on training and on held-out episodes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aime_fast.reporting.catalogue import metric
from aime_fast.reporting.charts.style import colour, styled
from aime_fast.reporting.findings.history import History

LOSSES = {"elbo": "total_elbo", "perceiver": "perceiver_loss", "predictive": "total_predictive"}
"""The loss of a task; `total_TASK` for others."""
SQUARED_PEAK = 4.0
"""Squared range of frames in [-1, 1]."""


def learning(run: History) -> Figure:
    """The loss of each task, bits per dimension, the KL of z and the PSNR over the steps."""
    losses = [LOSSES.get(task, f"total_{task}") for task in run.facts.tasks]
    names = [name for name in [*losses, "bits_per_dim", "kl_z"] if run.values(name) or run.values(name, "val")]
    panels = len(names) + 1
    columns = 2 if panels == 4 else min(3, panels)
    rows = -(-panels // columns)
    with styled(columns=columns, rows=rows, height=2.1 * rows + 0.3) as (figure, axes):
        for axis, name in zip(axes, names, strict=False):
            entry = metric(name)
            _both(axis, run, name)
            axis.set(title=name.replace("_", " "), xlabel="step", ylabel=entry.unit if entry else "")
        _psnr(axes[panels - 1], run)
        for axis in axes[panels:]:
            axis.remove()
        figure.legend(*axes[panels - 1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        return figure


def _both(axis: Axes, run: History, name: str) -> None:
    axis.plot(run.steps(name), run.values(name), color=colour(0), linewidth=1)
    _held_out(axis, run, name, 1)


def _psnr(axis: Axes, run: History) -> None:
    """A training row has the mean squared error of sampled latents, whose PSNR is a little below that at the mean."""
    squared = np.maximum(np.array(run.values("mean_error")), 1e-12)
    axis.plot(run.steps("mean_error"), 10 * np.log10(SQUARED_PEAK / squared), linewidth=1, label="training")
    lines = {"psnr": "held-out", "psnr_perceiver": "held-out, from tokens", "psnr_mean_frame": "mean training frame"}
    for place, (name, label) in enumerate(lines.items(), 1):
        _held_out(axis, run, name, place, label)
    axis.set(title="reconstruction", xlabel="step", ylabel="PSNR in dB")


def _held_out(axis: Axes, run: History, name: str, place: int, label: str = "") -> None:
    steps, values = run.steps(name, "val"), run.values(name, "val")
    axis.plot(steps, values, color=colour(place), marker="o", markersize=3, linewidth=1, label=label)
