"""SIGTERM and SIGINT as a request that the loop reads between two steps."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ANNOUNCEMENT = b"\nstopping with a checkpoint after this step; a second signal stops at once\n"
REPEAT_SECONDS = 2.0
"""A launcher forwards a signal that the terminal has already sent; within this time both count as one request."""


class Interruptions:
    """A context in which the first signal sets `received`; a later one takes its usual effect.

    announce: say on standard error at once what the first signal does; a step that compiles can take minutes.
    """

    def __init__(self, announce: bool = False) -> None:
        self._announce = announce
        self.received = 0
        """Number of the first signal; 0 if none has arrived."""
        self._when = 0.0
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> "Interruptions":
        # Python allows signal handlers in the main thread only; elsewhere the program that owns it decides.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._when = number, time.monotonic()
            if self._announce:
                os.write(2, ANNOUNCEMENT)  # a handler must not print: it may have interrupted a print
        elif time.monotonic() - self._when > REPEAT_SECONDS:
            self.__exit__()
            os.kill(os.getpid(), number)


class Stopped(BaseException):
    """A signal has arrived within `stopping`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


@contextmanager
def stopping() -> Iterator[None]:
    """The signals raise `Stopped` at once: around work that may be left at any place."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
