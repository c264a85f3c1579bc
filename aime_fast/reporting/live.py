"""The live view of a run in a terminal: time left and losses, a bar, their course, and the last findings."""

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
"""Heights of a sparkline, and those for a terminal without Unicode."""
FINDINGS = 2
"""Findings shown, newest last."""
LABEL, VALUE, PLACES = 14, 8, 48
"""Columns of a name and of a value, and most places of a sparkline."""


class Trend:
    """The course of a value over the whole run, as at most `2 * PLACES` means of equally many values each."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self._each, self._sum, self._count = 1, 0.0, 0

    def add(self, value: float) -> None:
        """Take in the next value; one that is not finite is left out."""
        if not isfinite(value):
            return
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count == self._each:
            self.means.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
        if len(self.means) == 2 * PLACES:
            self.means = [(one + other) / 2 for one, other in zip(self.means[::2], self.means[1::2], strict=True)]
            self._each *= 2


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """At most `width` characters: the means of equal parts, from the lowest bar to the highest."""
    count = min(width, len(values))
    cuts = [round(place * len(values) / max(count, 1)) for place in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((mean - low) * scale)] for mean in means)


class LiveView:
    """Lines at the bottom of a terminal that are redrawn in place; notes are printed above them."""

    def __init__(self, stream: TextIO, width: int) -> None:
        self._console = Console(file=stream, width=width, highlight=False)
        # What is printed elsewhere goes above the view too, unless it goes to a file.
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            vertical_overflow="crop",
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=stream is sys.stderr,
        )
        self._bars = BARS if (self._console.encoding or "").startswith("utf") else PLAIN_BARS
        self._trends: dict[str, Trend] = {}
        self._findings: deque[str] = deque(maxlen=FINDINGS)

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the losses of a row."""
        for name, value in values.items():
            self._trends.setdefault(name, Trend()).add(value)

    def show(self, line: str, done: float | None, values: Mapping[str, float], width: int) -> None:
        """Draw the view: a line, a bar of the fraction done (none without an end), and the course of each value."""
        self._console.width = width
        parts: list[RenderableType] = [_text(line, width)]
        if done is not None:
            parts.append(
                Padding(ProgressBar(total=1.0, completed=done, width=width - 1), expand=False)
            )  # ends the line
        places = min(PLACES, width - 1 - LABEL - VALUE)
        if places >= 8:
            for name, value in values.items():
                course = sparkline(self._trends[name].means, places, self._bars)
                parts.append(_text(f"{name:<{LABEL}.{LABEL - 1}}{course:<{places}}{value:>{VALUE}.4g}", width))
        parts += [_text(finding, width, style="yellow") for finding in self._findings]
        self._live.start()
        self._live.update(Group(*parts), refresh=True)

    def finding(self, line: str) -> None:
        """Keep a finding in view."""
        self._findings.append(line)

    def note(self, line: str) -> None:
        """Print a line above the view."""
        self._console.print(Text(line), soft_wrap=True)

    def close(self) -> None:
        """Leave the view as it is and start a new line."""
        self._live.stop()


def _text(line: str, width: int, style: str = "") -> Text:
    return Text(line[: width - 1], style=style, no_wrap=True, overflow="crop")
