"""Figures of the task gradients: how much they conflict, and how far balancing turns them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from aime_fast.reporting.charts.style import DIVERGING, colour, styled
from aime_fast.reporting.findings.history import History

ROWS = 20
"""Rows of training over which cosines are averaged."""


def conflicts(run: History) -> Figure:
    """The mean cosine between the gradients of each pair of tasks, over the last rows."""
    tasks = run.facts.tasks
    cosines = np.eye(len(tasks))
    for i, one in enumerate(tasks):
        for j, other in enumerate(tasks[:i]):
            values = run.values(f"rgb_cosine_{other}_{one}") or run.values(f"rgb_cosine_{one}_{other}")
            cosines[i, j] = cosines[j, i] = np.mean(values[-ROWS:]) if values else np.nan
    with styled(height=2.8, width=4.2) as (figure, (axis,)):
        image = axis.imshow(cosines, cmap=DIVERGING, vmin=-1, vmax=1)
        for (i, j), value in np.ndenumerate(cosines):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="black" if abs(value) < 0.6 else "white")
        axis.set_xticks(range(len(tasks)), tasks)
        axis.set_yticks(range(len(tasks)), tasks)
        rows = min(ROWS, len(run.values("grad_norm")))
        figure.suptitle(f"cosine between task gradients, mean of the last {rows} rows", fontsize=10)
        figure.colorbar(image, label="cosine: -1 is conflict")
        return figure


def angles(run: History) -> Figure:
    """By how much each task's gradient was turned, and the cosine of its successive gradients."""
    with styled(columns=2, height=2.4) as (figure, axes):
        for place, task in enumerate(run.facts.tasks):
            _line(axes[0], run, f"rgb_angle_{task}", task, place)
            _line(axes[1], run, f"successive_cosine_{task}", task, place)
        axes[0].set(title="angle of rotation", xlabel="step", ylabel="radians")
        axes[1].set(title="cosine of successive gradients", xlabel="step", ylabel="-1 is a swing", ylim=(-1.05, 1.05))
        axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
        return figure


def _line(axis: object, run: History, name: str, label: str, place: int) -> None:
    steps: Sequence[int] = run.steps(name)
    axis.plot(steps, run.values(name), color=colour(place), label=label, linewidth=1)  # type: ignore[attr-defined]
