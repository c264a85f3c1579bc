"""What all figures share: fonts, and colours that colour-blind readers tell apart (Okabe and Ito 2008)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DIVERGING = "PuOr"
WIDTH = 7.0
"""Inches."""
_SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}


@contextmanager
def styled(
    columns: int = 1, height: float = 2.6, rows: int = 1, heights: Sequence[float] | None = None
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `WIDTH` by `height` inches, and its axes row by row; `heights` are ratios of the rows."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
        yield figure, list(axes.flat)


def colour(index: int) -> str:
    """The colour of item `index`; they repeat after the last one."""
    return COLOURS[index % len(COLOURS)]
