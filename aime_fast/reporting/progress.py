"""The progress display: a bar in a terminal, a line now and then in a log file."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TextIO

import psutil
from tqdm import tqdm

_QUIET_SECONDS = (0.0, 5.0, 15.0, 60.0)
"""Minimum seconds before each line of a log; the last value repeats. Early lines show the speed soon."""

WIDTH, BAR = 80, 4
"""Columns of a terminal that does not say, and those kept free for the bar, a space before it and the last column."""


class Progress:
    """Progress of a run that ends after `total_steps` steps or `minutes`, whichever comes first; None sets no limit.

    In a terminal it is one line that is redrawn: the time left, the step, speed and losses, as far as they fit its
    width, and a bar in the rest. Elsewhere (a file, a pipe, CI) it is a line every minute, more often at first, which
    also has the fraction of time spent waiting for data and the memory (of the GPU if one is used, else of the
    process). `first_step` is the step a resumed run starts from. What can't be printed, to a closed pipe or a full
    disk, is dropped.
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
        self._bar: tqdm | None = None
        if self._stream.isatty():
            ends = total_steps or minutes
            layout = "{desc} {bar}" if ends else "{desc}"
            # The bar counts thousandths of the run because steps or minutes may end it.
            self._bar = tqdm(total=1000 if ends else None, file=self._stream, dynamic_ncols=True, bar_format=layout)

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
        count, left = f"step {step}" + (f"/{self._total}" if self._total else ""), self._left(step, now - self._started)
        speed, waits = f"{frames_per_second:,.0f} frames/s", f"data wait {data_wait_fraction:.0%}, {_memory()}"
        if self._bar is not None:
            losses = [f"{name} {value:.3g}" for name, value in values.items()]
            self._bar.n = round(1000 * self._done(step, now - self._started))
            with suppress(OSError):
                self._bar.set_description_str(fitted([left, count, speed, *losses, waits], self._width()))
        elif self._due(now, step):
            self._printed, self._lines = now, self._lines + 1
            losses = [f"{name} {value:.4g}" for name, value in values.items()]
            self.note(f"{count} | {' '.join(losses)} | {speed}, {waits}, {left}")

    def note(self, text: str) -> None:
        """Print a line (a result, a warning), above the bar if there is one."""
        with suppress(OSError):
            if self._bar is not None:
                self._bar.write(text, file=self._stream)
            else:
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is and start a new line."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()

    def _width(self) -> int:
        """Columns of the terminal; 80 where it does not say."""
        with suppress(OSError, ValueError):
            return os.get_terminal_size(self._stream.fileno()).columns or WIDTH
        return WIDTH

    def _due(self, now: float, step: int) -> bool:
        wait = _QUIET_SECONDS[min(self._lines, len(_QUIET_SECONDS) - 1)]
        return now - self._printed >= wait or step == self._total

    def _done(self, step: int, elapsed: float) -> float:
        """The fraction of the run that is done, in [0, 1]."""
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
    """The first parts, joined, that fit a line of `width` columns with room for a bar; at least the first."""
    line = parts[0]
    for part in parts[1:]:
        if len(f"{line} | {part}") > width - BAR:
            break
        line = f"{line} | {part}"
    return line


def _memory() -> str:
    """Memory in use, in GB: reserved on this process's GPU, or resident in the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"{torch.cuda.memory_reserved() / 1e9:.1f} GB on the GPU"
    return f"{psutil.Process().memory_info().rss / 1e9:.1f} GB"
