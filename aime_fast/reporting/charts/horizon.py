"""The prediction curve: PSNR by frames ahead, next to predictions that need no model."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from aime_fast.reporting.charts.style import colour, styled

MARKS = ("o", "s", "^", "v", "D", "x")


def horizon(curves: Mapping[str, Mapping[int, tuple[float, float, float]]], title: str) -> Figure:
    """Curves by name: frames ahead -> (PSNR in dB, low and high end of its interval, which may be nan)."""
    with styled(height=3.0) as (figure, (axis,)):
        for place, (name, points) in enumerate(curves.items()):
            ahead = sorted(points)
            values: Sequence[Sequence[float]] = [points[h] for h in ahead]
            means, low, high = np.array(values).T
            axis.plot(ahead, means, color=colour(place), label=name, marker=MARKS[place % len(MARKS)], markersize=4)
            axis.fill_between(ahead, low, high, color=colour(place), alpha=0.15, linewidth=0)
        axis.set(title=title, xlabel="frames ahead", ylabel="PSNR in dB")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        return figure
