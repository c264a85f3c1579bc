"""A case from the field: a small input, the command that reads it, and what must come of it."""

import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from aime_fast.commands.main import main
from aime_fast.data.store import open_store

READ, SAID, REFUSED = "read", "read, said", "refused"


@dataclass(frozen=True)
class Case:
    """`make` writes the input into an empty folder and returns its path."""

    name: str
    make: Callable[[Path], Path]
    comes: str
    """`READ`, `SAID` (read, and a line says what was assumed or changed) or `REFUSED` (one line, exit code 2)."""
    words: str = ""
    """Must be in the line."""
    source: str = ""
    """Where people report it."""
    frames: Callable[[], np.ndarray] | None = None
    """All frames that must be read, uint8 [N,64,64,3]."""
    options: tuple[str, ...] = ()
    """Of `pack`."""
    error: float = 0.0
    """Largest mean difference of the frames in levels; of compressed ones."""
    actions: Callable[[], np.ndarray] | None = None
    """The action beside each of `frames`, float32 [N,A], where the case is about them."""


@dataclass(frozen=True)
class Came:
    """What came of a command."""

    code: int
    said: str
    traceback: str = ""

    @property
    def lines(self) -> list[str]:
        return self.said.strip().splitlines()


def run(*arguments: str) -> Came:
    """Run a verb in this process; what it prints on standard error and standard output."""
    out, err = StringIO(), StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main(list(arguments))
    except SystemExit as ended:
        return Came(int(ended.code or 0), err.getvalue())
    except Exception as error:
        return Came(1, err.getvalue(), f"{type(error).__name__}: {error}")
    return Came(code, err.getvalue() + (out.getvalue() if arguments[0] != "pack" else ""))


def pack(case: Case, path: Path, out: Path) -> Came:
    return run("pack", str(path), "--out", str(out), "--workers", "1", *case.options)


def outcome(case: Case, path: Path, out: Path) -> tuple[str, str]:
    """What came of packing the input, as the table names it, and the line that says so."""
    came = pack(case, path, out)
    if came.traceback:
        return "traceback", came.traceback
    if came.code:
        return REFUSED, came.lines[-1].replace(str(path.parent), "...") if came.lines else ""
    if case.frames is None:
        return "accepted", ""
    found = open_store(out, "all")
    frames = np.concatenate([found.chunk_frames(e, s) for e, n in enumerate(found.lengths) for s in range(0, n, 16)])
    wanted = case.frames()
    if frames.shape != wanted.shape or np.abs(frames.astype(int) - wanted.astype(int)).mean() > case.error:
        return "wrong data", "; ".join(came.lines[1:])
    if case.actions is not None and not np.array_equal(found.actions, case.actions()):
        return "wrong actions", "; ".join(came.lines[1:])
    # What actions mean is said of every recording.
    usual = r", \d+ episodes$|^packed" + ("" if case.actions else "|^actions ")
    notes = [line for line in came.lines if not re.search(usual, line)]
    return (SAID if notes else READ), "; ".join(notes)
