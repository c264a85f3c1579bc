"""The live view: sparklines, the course of a long run, and lines that fit."""

import io
import math
import re

import pytest

from aime_fast.reporting.live import BARS, PLACES, PLAIN_BARS, LiveView, Trend, sparkline


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, BARS),
        ([7, 7, 0, 0], 2, "█▁"),
        ([3.0, 3.0], 5, "▁▁"),
        ([1.0], 5, "▁"),
        ([], 5, ""),
        ([0, 1, 2, 3, 4], 2, "▁█"),
        ([-1e300, 1e300], 2, "▁█"),
    ],
)
def test_a_sparkline_goes_from_the_lowest_bar_to_the_highest(values, width, expected):
    assert sparkline(values, width) == expected


def test_a_trend_keeps_the_whole_course_in_few_numbers():
    trend, count = Trend(), 1000
    for step in range(count):
        trend.add(float(step))
        trend.add(math.nan)
    assert PLACES <= len(trend.means) < 2 * PLACES
    assert trend.means == sorted(trend.means)
    each = round(trend.means[1] - trend.means[0])
    assert trend.means[0] == (each - 1) / 2  # the mean of 0, 1, ... each - 1
    assert trend.means[-1] > count - 2 * each


class Screen(io.StringIO):
    def __init__(self, encoding):
        super().__init__()
        self.names = encoding

    encoding = property(lambda self: self.names)

    def isatty(self):
        return True


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_line_fits_whatever_the_width_and_the_letters(width, encoding, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(encoding)
    view = LiveView(screen, width)
    losses = {"bits/dim": 3.25, "a loss with a very long name": 1e-9, "[red]": math.nan}
    view.finding("x" * 300)
    view.add(losses)
    view.note("[bold]markup stays as it is[/bold]")
    view.show("00:10 left | step 1/2" + "y" * 300, 0.5, losses, width)
    view.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "[bold]markup stays as it is[/bold]" in text
    assert all(len(line) < width for line in re.split(r"[\r\n]+", text) if "markup" not in line)
    assert ("bits/dim" in text) == (width >= 40)
    letters = set("".join(text.split("\n")[1:]))
    assert encoding == "utf-8" or letters.isdisjoint(BARS)
    assert encoding == "ascii" or width < 40 or BARS[0] in letters
    assert len(PLAIN_BARS) == len(BARS)
