"""A rank that makes no progress says where it is and ends, so that a hang is found out in bounded time."""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
FRAMES = 4
"""Innermost calls of each thread that are shown."""


class Watchdog:
    """While it is open, a process whose `beat` stays out for too long prints its threads' stacks and exits with 1.

    When one rank hangs the others wait for it in a collective: every rank gives its own account, and the one that does
    not name a collective is the one to look at. A lone process is left alone: nobody waits for it.
    """

    def __init__(self, rank: int, world_size: int, seconds: float) -> None:
        self._name = f"rank {rank} of {world_size} on {socket.gethostname()}"
        self._seconds, self._watching = seconds, world_size > 1
        self._last, self._what = time.monotonic(), "start"
        self._done = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._watching:
            self.beat("start")
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def beat(self, what: str) -> None:
        """Progress: `what` begins."""
        self._last, self._what = time.monotonic(), what

    def beating(self, items: Iterable[T], what: str) -> Iterator[T]:
        """The items, each of them progress."""
        for item in items:
            self.beat(what)
            yield item

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 10)):
            if time.monotonic() - self._last > self._seconds:
                print(self._account(), file=sys.stderr, flush=True)
                os._exit(1)

    def _account(self) -> str:
        names = {thread.ident: thread.name for thread in threading.enumerate() if thread.name != "watchdog"}
        lines = [f"{self._name}: no progress in {self._seconds:g} s since {self._what} began; its threads are here:"]
        for ident, frame in sys._current_frames().items():
            if ident in names:
                stack = "".join(traceback.format_stack(frame)[-FRAMES:]).rstrip()
                lines.append(f"thread {names[ident]}\n{stack}")
        return "\n".join(lines)
