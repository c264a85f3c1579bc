"""Runs a command in a process of its own: a time limit, a log, rows through a pipe, nothing left behind."""

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_check import ROOT
from gpu_check.records import Row, parsed

ROWS = "GPU_CHECK_ROWS"
"""Variable that holds the number of the pipe into which the process writes its rows."""
STARTED = "GPU_CHECK_STARTED"
"""Variable that holds the time at which the process was started, in seconds since 1970."""
_CHILD_SUBREAPER = 36
_PATIENCE = 5.0
"""Seconds to wait for killed processes. One that the driver of a card holds does not die at once."""
_TAIL = 4096


@dataclass(frozen=True)
class Ending:
    """How a process ended."""

    returncode: int | None
    """Exit code; minus the number of the signal that ended it; None after the time limit."""
    seconds: float
    last_lines: list[str]
    """Its last lines in the log, at most five."""


def run(
    command: Sequence[str], environment: Mapping[str, str], limit: float, log: Path, take: Callable[[Row], None]
) -> Ending:
    """Run `command` for at most `limit` seconds, and kill what is left of it and its children.

    `take` gets each row at once. Both output streams are appended to `log`.
    """
    older, started, size = _descendants(), time.monotonic(), log.stat().st_size if log.exists() else 0
    reader, writer = os.pipe()
    variables = {**environment, ROWS: str(writer), STARTED: repr(time.time())}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            process_group=0,
        )
    os.close(writer)
    thread = threading.Thread(target=_read, args=(reader, take), daemon=True)
    thread.start()
    try:
        returncode = process.wait(limit)
    except subprocess.TimeoutExpired:
        returncode = None
    finally:
        _kill(process, older)
        thread.join(_PATIENCE)
    return Ending(returncode, time.monotonic() - started, _last_lines(log, size))


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends, so that `run` finds it."""
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)


def _read(reader: int, take: Callable[[Row], None]) -> None:
    with os.fdopen(reader, "rb") as lines:
        for line in lines:
            take(parsed(line) or {"unreadable": line[:200].decode(errors="replace")})


def _kill(process: subprocess.Popen[bytes], older: set[int]) -> None:
    """Kill the process and all processes below it, also those that left its group."""
    process.kill()
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and (process.poll() is None or _descendants() - older):
        for pid in _descendants() - older:
            try:
                os.kill(pid, signal.SIGKILL)
                if pid != process.pid:
                    os.waitpid(pid, os.WNOHANG)  # an orphan that this process adopted
            except (ProcessLookupError, ChildProcessError):
                pass
        time.sleep(0.01)


def _descendants() -> set[int]:
    """Processes below this one."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name of a process stands in parentheses and may hold any characters.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    found = {os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {os.getpid()}


def _last_lines(log: Path, start: int) -> list[str]:
    with open(log, "rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - _TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.strip()[:300] for line in lines if line.strip()][-5:]
