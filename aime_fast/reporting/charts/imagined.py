"""The figure of a prediction: what was seen, what came, what the model imagined, and how wrong it was."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aime_fast.errors import UserError
from aime_fast.reporting.charts.style import ERRORS, WIDTH, empty
from aime_fast.reporting.prediction import Prediction

LABEL, GAP, SPLIT, STRIP, BAR = 0.66, 0.03, 0.14, 0.15, 0.5
"""Inches: a row's label, between tiles, around the line, a line of text, the colour bar with its text."""
LARGEST, LEAST = 8.0, 4.0
"""Points of the text under a tile."""
TEXT = 4.2
"""Width of `28.1 dB`, in its height."""


def spread_over(context: int, horizon: int, columns: int) -> list[int]:
    """`columns` frames of a window, or all: about a third seen, up to the last one, and evenly spread imagined ones."""
    seen = min(context, max(1, columns // 3, columns - horizon))
    ahead = min(horizon, columns - seen)
    parts = np.linspace(context - 1, 0, seen)[::-1], np.linspace(context, context + horizon - 1, ahead)
    return [frame for part in parts for frame in part.round().astype(int).tolist()]


def imagined(seen: Prediction, shown: Sequence[int], title: str = "", width: float = WIDTH) -> Figure:
    """Rows truth, prediction and error of the frames `shown`, in order, with the PSNR under each predicted frame.

    A line stands where seeing ends. Before it the model's row is filtered; `shown` has frames of both sides. Several
    futures have two rows each. `width` is in inches; `UserError` if the frames do not fit.
    """
    before, futures = sum(frame < seen.context for frame in shown), len(seen.made)
    side = (width - 2 * LABEL - GAP * (len(shown) - 2) - SPLIT) / len(shown)
    points = min(LARGEST, 72 * side / TEXT)
    if points < LEAST:
        raise UserError(
            f"{len(shown)} frames do not fit into {width:g} inches; show fewer with --frames, or raise --width"
        )
    tall = side * seen.truth.shape[1] / seen.truth.shape[2]
    top = STRIP * (4.2 if title else 2.5)
    block = 2 * tall + 2 * GAP + STRIP * 1.2
    height = top + tall + GAP + futures * block + BAR
    errors = seen.errors[:, list(shown)]
    worst = max(float(errors.max()), 1 / 255)

    def left(column: int) -> float:
        return LABEL + column * (side + GAP) + (SPLIT - GAP if column >= before else 0.0)

    def write(x: float, y: float, text: str, size: float, anchor: str = "center") -> None:
        figure.text(x / width, 1 - y / height, text, fontsize=size, ha=anchor, va="center")

    def tile(column: int, y: float, picture: np.ndarray, **colours: object) -> object:
        axis = figure.add_axes((left(column) / width, 1 - (y + tall) / height, side / width, tall / height))
        axis.set_axis_off()
        # Without interpolation PDF and SVG keep the pixels as they are.
        return axis.imshow(picture, interpolation="none", aspect="auto", **colours)

    def label(y: float, seen_name: str, name: str) -> None:
        write(LABEL - 0.06, y + tall / 2, seen_name, 8, "right")
        write(left(len(shown) - 1) + side + 0.06, y + tall / 2, name, 8, "left")

    with empty(width, height) as figure:
        if title:
            write(width / 2, STRIP, title, min(9.0, 120 * width / len(title)))
        room = left(len(shown) - 1) + side - left(before)
        write((left(0) + left(before - 1) + side) / 2, top - 1.7 * STRIP, "seen", 8)
        ahead = "imagined from actions alone" if room > 1.6 else "imagined"
        write(left(before) + room / 2, top - 1.7 * STRIP, ahead, 8)
        label(top, "truth", "truth")
        for column, frame in enumerate(shown):
            write(left(column) + side / 2, top - 0.6 * STRIP, f"t = {frame}", points)
            tile(column, top, seen.truth[frame])
        for future in range(futures):
            y = top + tall + GAP + future * block
            below = y + tall + STRIP * 1.2
            name = "imagined" if futures == 1 else f"future {future + 1}"
            # What was seen is filtered in the same way for every future.
            first = 0 if future == 0 else before
            label(y, "" if first else "filtered", name)
            label(below, "" if first else "error", "error")
            for column in range(first, len(shown)):
                frame = shown[column]
                tile(column, y, seen.made[future, frame])
                write(left(column) + side / 2, y + tall + 0.6 * STRIP, f"{seen.psnr[future, frame]:.1f} dB", points)
                scale = tile(column, below, errors[future, column], cmap=ERRORS, vmin=0, vmax=worst)
        long = min(width - 2 * LABEL, 2.5)
        bar = figure.add_axes(((width - long) / 2 / width, (BAR - 0.14) / height, long / width, 0.07 / height))
        figure.colorbar(scale, cax=bar, orientation="horizontal")
        bar.tick_params(labelsize=7, length=2)
        bar.set_xlabel("absolute error, frames in [0, 1]", fontsize=7, labelpad=1)
        x, ends = (left(before) - SPLIT / 2) / width, (top - 2.3 * STRIP, height - BAR + GAP)
        ys = [1 - end / height for end in ends]
        figure.add_artist(Line2D((x, x), ys, color="black", linestyle="--", linewidth=0.9))
        return figure
