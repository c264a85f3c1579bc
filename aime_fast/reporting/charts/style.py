"""What all figures share: fonts, colours that colour-blind readers tell apart (Okabe and Ito 2008), and files."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DIVERGING, ERRORS = "PuOr", "inferno"
"""Colour maps of signed values, and of errors."""
WIDTH, DOTS = 7.0, 300
"""Inches, and dots an inch of a picture."""
SUFFIXES = (".pdf", ".svg", ".png")
"""Kinds of files that `save` writes."""
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
    columns: int = 1,
    height: float = 2.6,
    rows: int = 1,
    heights: Sequence[float] | None = None,
    width: float = WIDTH,
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `width` by `height` inches, and its axes row by row; `heights` are ratios of the rows."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
        yield figure, list(axes.flat)


@contextmanager
def empty(width: float, height: float) -> Iterator[Figure]:
    """A figure of these inches without axes, for those that place their own."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height))
        figure.set_layout_engine("none")
        yield figure


def save(figure: Figure, path: Path) -> None:
    """Write a PDF or SVG, whose text stays text, or a PNG of `DOTS`, by the suffix.

    The file has another name until it is whole. The same figure gives the same bytes. Raises OSError.
    """
    suffix = path.suffix.lower()
    draft = path.with_name(f"{path.stem}.unfinished{suffix}")
    undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(suffix)
    try:
        with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "aime-fast"}):
            figure.savefig(draft, format=suffix[1:], dpi=DOTS, metadata=undated)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def colour(index: int) -> str:
    """The colour of item `index`; they repeat after the last one."""
    return COLOURS[index % len(COLOURS)]
