"""One run at a time writes to a folder: a lock that names its owner and shows that the owner lives."""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from aime_fast.errors import UserError

BEAT_SECONDS = 5.0
"""An owner touches its lock so often."""
WATCH_SECONDS = 30.0
"""A lock of another machine that is not touched for so long is stale."""


class RunLock:
    """`lock` in a run's folder, held from `acquire` to `release`.

    An owner on this machine lives if its process does. Of one on another machine only the beat tells: its lock is
    watched for half a minute, by changes of its time stamp, so that clocks need not agree.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._done = threading.Event()
        self._beats: threading.Thread | None = None

    def acquire(self) -> str | None:
        """Take the lock; a line about a stale one that was found, or none. `UserError` where another run holds it."""
        told = None
        while not self._create():
            owner = _read(self.path)
            if owner is None:
                continue  # given back a moment ago
            if _lives(owner) or (owner["host"] != socket.gethostname() and _beats(self.path)):
                raise UserError(
                    f"{self.path.parent} is being written by process {owner['pid']} on {owner['host']}; wait for it, "
                    f"or name another --out"
                )
            told = f"the run of process {owner['pid']} on {owner['host']} ended without a word; its lock is taken over"
            self._remove(owner)
        self._done.clear()
        self._beats = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beats.start()
        return told

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if self._beats is not None:
            self._done.set()
            self._beats.join()
            self._beats = None
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Whether the lock is ours now. It appears with its content: a link to a file that is complete."""
        draft = self.path.with_name(f"lock.{socket.gethostname()}.{os.getpid()}")
        draft.write_text(json.dumps(_myself()))
        try:
            os.link(draft, self.path)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _remove(self, judged: dict[str, Any]) -> None:
        """Remove the stale lock that was judged, and not one that another process has put in its place since."""
        aside = self.path.with_name(f"lock.stale.{socket.gethostname()}.{os.getpid()}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
            if _read(aside) != judged:
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with suppress(OSError):  # a full or absent disk is told by whoever writes to it
                os.utime(self.path)


def _myself() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the owner is a process of this machine that is still the one that took the lock."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(owner["pid"])
        # Numbers of processes are used again: the start tells them apart.
        return abs(process.create_time() - owner["started"]) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _beats(path: Path) -> bool:
    """Whether the lock is touched within `WATCH_SECONDS`."""
    first, end = _stamp(path), time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        if _stamp(path) != first:
            return True
        time.sleep(BEAT_SECONDS / 10)
    return False


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
