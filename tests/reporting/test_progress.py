"""The progress of a run: a bar in a terminal, few lines elsewhere; time is a fake clock."""

import io
import re
from itertools import pairwise

import pytest

from aime_fast.reporting import progress as progress_module
from aime_fast.reporting.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(progress_module.time, "monotonic", lambda: Clock.now)
    return Clock


def show(progress, step):
    progress.update(step, {"elbo": 123.456, "perceiver": 0.5}, 1234.5, 0.031)


def test_a_line_says_everything(clock):
    stream = io.StringIO()
    progress = Progress(100, stream=stream)
    clock.now = 30.0
    show(progress, 25)
    progress.close()
    pattern = (
        r"step 25/100 \| elbo 123\.5 perceiver 0\.5 \| 1,234 frames/s, data wait 3%, \d+\.\d GB( on the GPU)?, "
        r"01:30 left\n"
    )
    assert re.fullmatch(pattern, stream.getvalue())


def test_a_log_file_gets_few_lines_and_the_last_step(clock):
    stream = io.StringIO()
    progress = Progress(1000, stream=stream)
    for step in range(1, 1001):
        clock.now = float(step)
        show(progress, step)
    steps = [int(step) for step in re.findall(r"^step (\d+)/", stream.getvalue(), flags=re.MULTILINE)]
    assert steps[0] == 1
    assert steps[-1] == 1000
    assert 15 <= len(steps) <= 22
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    assert gaps[:3] == [5, 15, 60]


@pytest.mark.parametrize(
    ("ends", "elapsed", "step", "said"),
    [
        ({"total_steps": 10}, 30.0, 5, "00:30 left"),
        ({"total_steps": 10, "first_step": 4}, 30.0, 5, "02:30 left"),
        ({"total_steps": None, "minutes": 2}, 30.0, 5, "01:30 left"),
        ({"total_steps": 10, "minutes": 0.6}, 30.0, 5, "00:06 left"),
        ({"total_steps": None, "minutes": 2}, 150.0, 5, "00:00 left"),
        ({"total_steps": None}, 30.0, 5, "00:30 passed"),
    ],
)
def test_the_time_left_is_to_whatever_ends_first(clock, ends, elapsed, step, said):
    stream = io.StringIO()
    progress = Progress(stream=stream, **ends)
    clock.now = elapsed
    show(progress, step)
    assert stream.getvalue().endswith(f", {said}\n")


@pytest.mark.parametrize("ends", [{"total_steps": 4}, {"total_steps": None, "minutes": 1}, {"total_steps": None}])
def test_a_terminal_gets_a_view_that_is_redrawn(clock, ends, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream=stream, **ends)
    for step in (1, 2):
        clock.now = 15.0 * step
        show(progress, step)
    progress.finding("kl-collapse at step 2: z carries nothing")
    progress.note("epoch 1: PSNR 20 dB")
    clock.now = 45.0
    show(progress, 3)
    progress.close()
    screen = on_screen(stream.getvalue())
    assert screen[0] == "epoch 1: PSNR 20 dB"
    assert "step 3" in screen[1] and "elbo 123 | perceiver 0.5" in screen[1]
    assert (len(screen[2]) == 79 and set(screen[2]) <= set("━╸╺ ")) == (ends != {"total_steps": None})
    assert re.match(r"elbo +▁+ +123\.5$", screen[-3])
    assert screen[-1] == "kl-collapse at step 2: z carries nothing"
    assert sum("step " in line for line in screen) == 2  # the line and the finding: earlier lines are gone


def on_screen(text):
    """The lines that a terminal shows in the end, for the codes that the view uses: up, to the left, erase a line."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return [line.rstrip() for line in lines if line.strip()]


def test_a_note_in_a_log_file_is_a_line():
    stream = io.StringIO()
    progress = Progress(None, stream=stream)
    progress.note("resumed from step 5")
    assert stream.getvalue() == "resumed from step 5\n"
