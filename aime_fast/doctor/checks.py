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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

MARK = "finding "
"""Start of the line with the answer, among other output of libraries."""


@dataclass(frozen=True)
class Finding:
    """What a probe found; a `fix` means a problem."""

    found: str
    """One line: a version, a size, or what is wrong."""
    fix: str = ""
    """What to do about it; empty if all is well."""
    limits: bool = False
    """With a fix: training still works, but not as well as it could."""


@dataclass(frozen=True)
class Check:
    """One question to the machine."""

    name: str
    probe: str
    """`module:function`; it returns a `Finding` and runs in a process of its own."""
    fix: str
    """What to do if the probe raises, crashes or hangs."""
    required: bool = False
    """Training cannot work without it."""
    seconds: float = 120.0
    """Longest wait for the answer."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of that process, added to those of this one."""


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    name: str
    status: Literal["ok", "warning", "failed"]
    """`failed` only if training cannot work."""
    found: str
    fix: str
    """Empty if the status is ok."""

    @property
    def line(self) -> str:
        """The row as one sentence."""
        return f"{self.name}: {self.found}" + (f"; {self.fix}" if self.fix else "")


def run_check(check: Check) -> Result:
    """Run one probe. A probe that raises, crashes, hangs or prints no answer counts as a problem."""
    finding = _ask(check)
    if not finding.fix:
        return Result(check.name, "ok", finding.found, "")
    status: Literal["warning", "failed"] = "failed" if check.required and not finding.limits else "warning"
    return Result(check.name, status, finding.found, finding.fix)


def answer(probe: str) -> None:
    """Run `module:function`, print its `Finding` as one line, and end this process at once.

    It ends abruptly because graphics and device libraries may crash at exit, after the check has passed.
    """
    module, _, function = probe.partition(":")
    with contextlib.redirect_stdout(sys.stderr):
        finding = getattr(importlib.import_module(module), function)()
    sys.stdout.write(f"\n{MARK}{json.dumps(asdict(finding))}\n")
    sys.stdout.flush()
    os._exit(0)


def _ask(check: Check) -> Finding:
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import answer; answer({check.probe!r})"
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
        return Finding(f"no answer in {check.seconds:.0f} s", check.fix)
    finally:
        if process.poll() is None:  # also ends child processes, which would hold the pipes open
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    answers = [line for line in out.splitlines() if line.startswith(MARK)]
    if answers:
        return Finding(**json.loads(answers[-1].removeprefix(MARK)))
    if process.returncode < 0:
        return Finding(f"crashed ({signal.Signals(-process.returncode).name})", check.fix)
    last = err.strip().splitlines()[-1:] or [f"ended with exit code {process.returncode} and no answer"]
    return Finding(last[0], check.fix)
