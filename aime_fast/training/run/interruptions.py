"""SIGTERM and SIGINT as a request that the loop reads between two steps."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEAT_SECONDS = 2.0
"""A launcher passes on the signal that the terminal has sent already: within this time it is the same request."""


class Interruptions:
    """A context in which the first signal sets `received`, and one that comes later acts as if we were not here."""

    def __init__(self) -> None:
        self.received = 0
        """Number of the first signal; 0 while there was none."""
        self._when = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruptions":
        # Python allows handlers in the main thread only; elsewhere the program that owns it decides.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._when = number, time.monotonic()
        elif time.monotonic() - self._when > REPEAT_SECONDS:
            self.__exit__(None, None, None)
            os.kill(os.getpid(), number)
