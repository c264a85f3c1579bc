"""Ends a rank that makes no progress, so that a hang is found in bounded time."""

import faulthandler
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
STDERR = 2
GRACE_SECONDS = 0.5
"""Time for the message before faulthandler prints the stacks and ends the process."""


class Watchdog:
    """A context in which a process that does not call `beat` for `seconds` prints its stacks and exits with code 1.

    If one rank hangs, the others wait for it in a collective. Each rank prints the phase it is in and the stacks of
    its threads; the rank whose stack shows no collective is the one to look at. A single process is not watched.

    faulthandler ends the process from a thread of its own that needs no interpreter lock. It cannot print a message,
    so a Python thread does that first.
    """

    def __init__(self, rank: int, world_size: int, seconds: float) -> None:
        self._name = f"rank {rank} of {world_size} on {socket.gethostname()}"
        self._seconds, self._enabled = seconds, world_size > 1
        self.phase, self._due = "start", 0.0
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.beat("start")
        if self._enabled:
            threading.Thread(target=self._announce, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        if self._enabled:
            faulthandler.cancel_dump_traceback_later()

    def beat(self, phase: str) -> None:
        """Report progress: `phase` begins. Restarts the time limit."""
        self.phase, self._due = phase, time.monotonic() + self._seconds
        if self._enabled:
            faulthandler.dump_traceback_later(self._seconds + GRACE_SECONDS, exit=True, file=STDERR)

    def beating(self, items: Iterable[T], phase: str) -> Iterator[T]:
        """Yield the items; each one counts as progress."""
        for item in items:
            self.beat(phase)
            yield item

    def _announce(self) -> None:
        while (left := self._due - time.monotonic()) > 0:
            if self._closed.wait(left):
                return
        message = f"{self._name}: no progress for {self._seconds:g} s in phase `{self.phase}`; stacks of its threads:"
        print(message, file=sys.stderr, flush=True)
