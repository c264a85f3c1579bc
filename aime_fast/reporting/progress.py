"""The progress display: a live view in a terminal, a line now and then in a log file."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TextIO

import psutil
from tqdm import tqdm

from aime_fast.reporting.live import LiveView

_QUIET_SECONDS = (0.0, 5.0, 15.0, 60.0)
"""Minimum seconds before each line of a log; the last value repeats. Early lines show the speed soon."""
REDRAWN_SECONDS = 0.2
"""Minimum seconds between two drawings of the live view: one takes some milliseconds."""
WIDTH = 80
"""Columns of a terminal that does not say."""


class Progress:
    """Progress of a run that ends after `total_steps` steps or `minutes`, whichever comes first; None sets no limit.

    In a terminal it is a view that is redrawn (`LiveView`): a line with the time left, the step, speed and losses, as
    far as they fit its width; a bar; the course of the losses; the last findings. Elsewhere (a file, a pipe, CI) it is
    a line every minute, more often at first, which also has the fraction of time spent waiting for data and the memory.
    `first_step` is the step a resumed run starts from. What can't be printed, to a closed pipe or a full disk, is
    dropped.
    """

    def __init__(
        self,
        total_steps: int | None,
        minutes: float | None = None,
        *,
        first_step: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        self._total, self._seconds, self._first = total_steps, minutes and 60 * minutes, first_step
        self._started = self._printed = time.monotonic()
        self._lines = 0
        redrawable = self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._view = LiveView(self._stream, self._width()) if redrawable else None

    def update(
        self,
        step: int,
        values: Mapping[str, float],
        frames_per_second: float,
        data_wait_fraction: float,
    ) -> None:
        """Show step `step` (from 1) and `values`, name -> number.

        `frames_per_second` is over all processes; `data_wait_fraction` is in [0, 1].
        """
        now = time.monotonic()
        if self._view:
            self._view.add(values)
        if not self._due(now, step):
            return
        count, left = f"step {step}" + (f"/{self._total}" if self._total else ""), self._left(step, now - self._started)
        speed, waits = f"{frames_per_second:,.0f} frames/s", f"data wait {data_wait_fraction:.0%}, {_memory()}"
        self._printed, self._lines = now, self._lines + 1
        if self._view:
            width, losses = self._width(), [f"{name} {value:.3g}" for name, value in values.items()]
            line = fitted([left, count, speed, *losses, waits], width)
            with suppress(OSError):
                self._view.show(line, self._done(step, now - self._started), values, width)
        else:
            losses = [f"{name} {value:.4g}" for name, value in values.items()]
            self.note(f"{count} | {' '.join(losses)} | {speed}, {waits}, {left}")

    def finding(self, line: str) -> None:
        """Keep a finding in view, where there is a view."""
        if self._view:
            self._view.finding(line)

    def note(self, text: str) -> None:
        """Print a line (a result, a warning), above the view if there is one."""
        with suppress(OSError):
            if self._view:
                self._view.note(text)
            else:
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the view as it is and start a new line."""
        if self._view:
            with suppress(OSError):
                self._view.close()

    def _width(self) -> int:
        """Columns of the terminal; 80 where it does not say."""
        with suppress(OSError, ValueError):
            return os.get_terminal_size(self._stream.fileno()).columns or WIDTH
        return WIDTH

    def _due(self, now: float, step: int) -> bool:
        if self._view:
            wait = REDRAWN_SECONDS if self._lines else 0.0
        else:
            wait = _QUIET_SECONDS[min(self._lines, len(_QUIET_SECONDS) - 1)]
        return now - self._printed >= wait or step == self._total

    def _done(self, step: int, elapsed: float) -> float | None:
        """The fraction of the run that is done, in [0, 1]; None for a run without an end."""
        if not (self._total or self._seconds):
            return None
        by_steps = step / self._total if self._total else 0.0
        return min(max(by_steps, elapsed / self._seconds if self._seconds else 0.0), 1.0)

    def _left(self, step: int, elapsed: float) -> str:
        """`12:05 left`, by steps or minutes, whichever ends first; `12:05 passed` if neither is set."""
        ends = []
        if self._total and step > self._first:
            ends.append(elapsed / (step - self._first) * max(self._total - step, 0))
        if self._seconds:
            ends.append(max(self._seconds - elapsed, 0.0))
        return f"{tqdm.format_interval(min(ends))} left" if ends else f"{tqdm.format_interval(elapsed)} passed"


def fitted(parts: Sequence[str], width: int) -> str:
    """The first parts, joined, that fit a line of less than `width` columns; at least the first."""
    line = parts[0]
    for part in parts[1:]:
        if len(f"{line} | {part}") >= width:
            break
        line = f"{line} | {part}"
    return line


def memory_in_use() -> tuple[float, bool]:
    """Memory in GB, and whether it is a GPU's: reserved on this process's GPU, or resident in the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.memory_reserved() / 1e9, True
    return psutil.Process().memory_info().rss / 1e9, False


def _memory() -> str:
    gigabytes, on_gpu = memory_in_use()
    return f"{gigabytes:.1f} GB" + (" on the GPU" if on_gpu else "")
