"""A picture of one recorded step: phases, the device's work, and the thread that reads data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aime_fast.profiling.spans import Interval, Span, gaps, length, union
from aime_fast.profiling.trace import ELSEWHERE, Trace

COLOURS = {
    "wait": "#7f7f7f",
    "forward": "#1f77b4",
    "backward": "#c44e52",
    "balance": "#9467bd",
    "step": "#2ca02c",
    "averages": "#8c8c22",
    "data": "#17a2b8",
    "replay": "#1f77b4",
    "log": "#e377c2",
    "validation": "#bcbd22",
    "checkpoint": "#e6960b",
    "gather": "#444444",
    ELSEWHERE: "#d9d9d9",
}
OTHER = "#555555"
TASKS = ("#d62728", "#ff7f0e", "#b5651d", "#f2a65a")
"""Colours of the backward passes in order."""
ZOOMS, LETTER = 30.0, 0.0065
"""The lower part shows 1/30 of the step; a letter takes this part of the width."""


def draw_timeline(trace: Trace, path: Path, title: str) -> None:
    """Draw the last but one step of `trace` as a PNG: the step above, and below the part around its longest gap."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    start, end = trace.steps[-2] if len(trace.steps) > 1 else trace.steps[-1]
    colours = _colours(trace)
    figure, axes = pyplot.subplots(2, 1, figsize=(13, 6.0), layout="constrained")
    _draw(axes[0], trace, (start, end), start, colours)
    axes[0].set_title(title, loc="left", fontsize=11)
    zoomed = _around_longest_gap(trace, start, end)
    _draw(axes[1], trace, zoomed, start, colours)
    what = "card" if trace.on_card else "operators"
    axes[1].set_title(f"around the longest gap between {what} of that step", loc="left", fontsize=11)
    axes[1].set_xlabel("milliseconds since the step began")
    seen = dict.fromkeys(span.name for span in [*trace.phases, *trace.loading] if span.end > start and span.start < end)
    keys = [Patch(color=colours.get(name, OTHER), label=name) for name in seen]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 6), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _colours(trace: Trace) -> dict[str, str]:
    tasks = [name for name in trace.times if name.startswith("backward/")]
    return COLOURS | {name: TASKS[index % len(TASKS)] for index, name in enumerate(tasks)}


def _around_longest_gap(trace: Trace, start: float, end: float) -> Interval:
    """The part of the step in whose middle the device is idle longest."""
    busy = union(interval for intervals in trace.busy.values() for interval in intervals)
    longest = max(gaps(busy, start, end), key=lambda gap: gap[1] - gap[0], default=(start, end))
    width = max((end - start) / ZOOMS, 2 * (longest[1] - longest[0]))
    middle = (longest[0] + longest[1]) / 2
    first = min(max(start, middle - width / 2), max(start, end - width))
    return first, min(end, first + width)


def _draw(axis: Any, trace: Trace, shown: Interval, zero: float, colours: dict[str, str]) -> None:
    first, last = shown
    _lane(axis, 2, trace.phases, shown, zero, colours, labels=True)
    for name, intervals in trace.busy.items():
        spans = [Span(name, *interval) for interval in intervals]
        _lane(axis, 1, spans, shown, zero, colours, labels=False)
    _lane(axis, 0, trace.loading, shown, zero, colours, labels=True)
    inside = [(max(a, first), min(b, last)) for each in trace.busy.values() for a, b in each if b > first and a < last]
    share = length(inside) / (last - first)
    device = "card" if trace.on_card else "operators"
    axis.set_yticks([2, 1, 0], ["phases", f"{device}\n{share:.0%} busy", "data thread"])
    axis.set_xlim((first - zero) / 1e3, (last - zero) / 1e3)
    axis.set_ylim(-0.5, 2.5)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _lane(
    axis: Any,
    row: int,
    spans: Sequence[Span],
    shown: Interval,
    zero: float,
    colours: dict[str, str],
    labels: bool,
) -> None:
    first, last = shown
    for name in dict.fromkeys(span.name for span in spans):
        seen = [
            (max(span.start, first), min(span.end, last))
            for span in spans
            if span.name == name and span.end > first and span.start < last
        ]
        colour = colours.get(name, OTHER)
        bars = [((a - zero) / 1e3, (b - a) / 1e3) for a, b in seen]
        axis.broken_barh(bars, (row - 0.4, 0.8), facecolor=colour, linewidth=0)
        for a, b in seen if labels and name != ELSEWHERE else ():
            text = _fitting(name, (b - a) / (last - first))
            axis.text(((a + b) / 2 - zero) / 1e3, row, text, ha="center", va="center", fontsize=9, color="white")


def _fitting(name: str, share: float) -> str:
    """The name, or its last part, or nothing: what fits into a bar of this share of the width."""
    return next((text for text in (name, name.rpartition("/")[2]) if len(text) * LETTER < share), "")
