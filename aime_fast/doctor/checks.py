"""One check of the machine: a probe in a process of its own, with a time limit.

A native library that crashes or hangs is then one failed row of the table, not the end of the doctor.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

MARK = "finding "
"""Start of the line with the answer, among other output of libraries."""


@dataclass(frozen=True)
class Check:
    """One question to the machine.

    `probe` is a function of a module that returns a `Result` without a name. `fix` is what to do if it raises, crashes
    or takes longer than `seconds`. `environment` is added to the environment variables of its process.
    """

    name: str
    probe: Callable[[], "Result"]
    fix: str
    required: bool = False
    """Training cannot work without it."""
    seconds: float = 120.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One row of the table. `failed` means that training cannot work; `fix` says what to do, and is empty if ok."""

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    fix: str = ""

    @property
    def line(self) -> str:
        """The row as one sentence."""
        return f"{self.name}: {self.found}" + (f"; {self.fix}" if self.fix else "")


def ok(found: str) -> Result:
    """The result of a probe that found no problem."""
    return Result("", "ok", found)


def warning(found: str, fix: str) -> Result:
    """The result of a probe that found a problem with which training still works."""
    return Result("", "warning", found, fix)


def run_check(check: Check) -> Result:
    """Run one probe. A probe that raises, crashes, hangs or prints no answer counts as a problem."""
    found, problem = _ask(check)
    if found is None:
        return Result(check.name, "failed" if check.required else "warning", problem, check.fix)
    return Result(**{**json.loads(found), "name": check.name})


def answer(module: str, function: str) -> None:
    """Run a probe, print its `Result` as one line, and end this process at once.

    It ends abruptly because graphics and device libraries may crash at exit, after the check has passed.
    """
    with contextlib.redirect_stdout(sys.stderr):
        result = getattr(importlib.import_module(module), function)()
    sys.stdout.write(f"\n{MARK}{json.dumps(asdict(result))}\n")
    sys.stdout.flush()
    os._exit(0)


def _ask(check: Check) -> tuple[str | None, str]:
    """The answer of a probe as JSON, or None and the problem."""
    name = check.probe.__module__, check.probe.__name__
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import answer; answer(*{name!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **check.environment},
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=check.seconds)
    except subprocess.TimeoutExpired:
        return None, f"no answer in {check.seconds:.0f} s"
    finally:
        if process.poll() is None:  # also ends child processes, which would hold the pipes open
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    answers = [line for line in out.splitlines() if line.startswith(MARK)]
    if answers:
        return answers[-1].removeprefix(MARK), ""
    if process.returncode < 0:
        return None, f"crashed ({signal.Signals(-process.returncode).name})"
    last = err.strip().splitlines()[-1:] or [f"ended with exit code {process.returncode} and no answer"]
    return None, last[0]
