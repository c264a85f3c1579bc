"""The figure of a prediction: what was seen, what came, what the model imagined, and how wrong it was."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
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
    side = (width - 2 * LABEL - GAP * (len(shown) - 2) - SPLIT) / len(shown)
    points = min(LARGEST, 72 * side / TEXT)
    if points < LEAST:
        raise UserError(
            f"{len(shown)} frames do not fit into {width:g} inches; show fewer with --frames, or raise --width"
        )
    tall = side * seen.truth.shape[1] / seen.truth.shape[2]
    top = STRIP * (4.2 if title else 2.5)
    block = 2 * tall + 2 * GAP + 1.2 * STRIP
    height = top + tall + GAP + len(seen.made) * block + BAR
    before = sum(frame < seen.context for frame in shown)
    with empty(width, height) as figure:
        worst = max(float(seen.errors[:, list(shown)].max()), 1 / 255)
        grid = _Grid(figure, shown, before, side, tall, points, worst)
        if title:
            grid.write(width / 2, STRIP, title, min(9.0, 120 * width / len(title)))
        grid.head(top)
        for column, frame in enumerate(shown):
            grid.tile(column, top, seen.truth[frame])
        for future in range(len(seen.made)):
            scale = grid.future(seen, future, top + tall + GAP + future * block)
        grid.line(top - 2.3 * STRIP, height - BAR + GAP)
        long = min(width - 2 * LABEL, 2.5)
        bar = figure.add_axes(((width - long) / 2 / width, (BAR - 0.14) / height, long / width, 0.07 / height))
        figure.colorbar(scale, cax=bar, orientation="horizontal")
        bar.tick_params(labelsize=7, length=2)
        bar.set_xlabel("absolute error, frames in [0, 1]", fontsize=7, labelpad=1)
        return figure


@dataclass(frozen=True)
class _Grid:
    """Tiles in columns; places are inches from the figure's top left corner."""

    figure: Figure
    shown: Sequence[int]
    before: int
    """Columns before the line."""
    side: float
    tall: float
    """Width and height of a tile."""
    points: float
    """Size of the text of a column."""
    worst: float
    """The error at the end of the colours."""

    def left(self, column: int) -> float:
        return LABEL + column * (self.side + GAP) + (SPLIT - GAP if column >= self.before else 0.0)

    def middle(self, column: int) -> float:
        return self.left(column) + self.side / 2

    def write(self, x: float, y: float, text: str, size: float, anchor: str = "center") -> None:
        width, height = self.figure.get_size_inches()
        self.figure.text(x / width, 1 - y / height, text, fontsize=size, ha=anchor, va="center")

    def label(self, y: float, name: str, name_before: str = "") -> None:
        """What a row is, right of it, and left of it where it begins before the line."""
        if name_before:
            self.write(LABEL - 0.06, y + self.tall / 2, name_before, LARGEST, "right")
        self.write(self.left(len(self.shown) - 1) + self.side + 0.06, y + self.tall / 2, name, LARGEST, "left")

    def tile(self, column: int, y: float, picture: np.ndarray) -> AxesImage:
        """A frame uint8 [H, W, 3] as it is, or an error [H, W] in colours."""
        width, height = self.figure.get_size_inches()
        place = self.left(column) / width, 1 - (y + self.tall) / height, self.side / width, self.tall / height
        axis = self.figure.add_axes(place)
        axis.set_axis_off()
        # Without interpolation PDF and SVG keep the pixels as they are.
        return axis.imshow(picture, interpolation="none", aspect="auto", cmap=ERRORS, vmin=0, vmax=self.worst)

    def head(self, y: float) -> None:
        """What is left and right of the line, and the frames' numbers, above the row of the truth at `y`."""
        last = len(self.shown) - 1
        ahead = (
            "imagined from actions alone" if self.left(last) + self.side - self.left(self.before) > 1.6 else "imagined"
        )
        self.write((self.middle(0) + self.middle(self.before - 1)) / 2, y - 1.7 * STRIP, "seen", LARGEST)
        self.write((self.middle(self.before) + self.middle(last)) / 2, y - 1.7 * STRIP, ahead, LARGEST)
        for column, frame in enumerate(self.shown):
            self.write(self.middle(column), y - 0.6 * STRIP, f"t = {frame}", self.points)
        self.label(y, "truth", "truth")

    def future(self, seen: Prediction, future: int, y: float) -> AxesImage:
        """The rows of a future: frames, scores, errors. What was seen is the same for all, and beside the first one."""
        below = y + self.tall + 1.2 * STRIP
        name = "imagined" if len(seen.made) == 1 else f"future {future + 1}"
        self.label(y, name, "" if future else "filtered")
        self.label(below, "error", "" if future else "error")
        for column in range(self.before if future else 0, len(self.shown)):
            frame = self.shown[column]
            self.tile(column, y, seen.made[future, frame])
            score = f"{seen.psnr[future, frame]:.1f} dB"
            self.write(self.middle(column), y + self.tall + 0.6 * STRIP, score, self.points)
            scale = self.tile(column, below, seen.errors[future, frame])
        return scale

    def line(self, top: float, bottom: float) -> None:
        """Where seeing ends."""
        width, height = self.figure.get_size_inches()
        x = (self.left(self.before) - SPLIT / 2) / width
        ends = 1 - top / height, 1 - bottom / height
        self.figure.add_artist(Line2D((x, x), ends, color="black", linestyle="--", linewidth=0.9))
