"""The tests for a GPU, with the first line of each failure as soon as it is known."""

import importlib.util
import os
import time
from collections import Counter
from pathlib import Path

from gpu_check import ROOT
from gpu_check.worker import Emit, Failure

MOST_WORKERS = 8
SLOW = "on_a_gpu and plain-on"
"""Tests that compile for longer than the stage may take; `steps` covers compiled and captured steps."""
EVERY = 5.0
"""Seconds between two counts, so that a killed run has said how far it came."""


def run(emit: Emit, device: str) -> None:
    """Run the tests that are marked `gpu`; raise if one failed."""
    # cuBLAS repeats its results with this setting only; torch warns of it, which would hide what a test is about.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import pytest

    outcomes = Outcomes(emit)
    outcomes.count()
    # Warnings are rows, not failures: a new version's warning would fail every test and hide what else is wrong.
    options = ["-o", "addopts=", "-o", "timeout=60", "-q", "-p", "no:cacheprovider", "--tb=short", "-W", "default"]
    options += ["-rsfE", "--durations=12"]
    if device == "cuda" and importlib.util.find_spec("xdist"):
        options += ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1)), "--dist", "worksteal"]
    options += ["--continue-on-collection-errors", "-m", "gpu", "-k", f"not ({SLOW})"]
    code = pytest.main([*options, *files()], plugins=[outcomes])
    outcomes.count()
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        bad = sum(outcomes.counts[word] for word in ("failed", "error"))
        raise Failure(f"{bad} tests failed" if bad else f"pytest ended with {code!r}")


def files() -> list[str]:
    """Files of tests that need a GPU: those with the mark, and then the kernels against their references.

    Tests that train take longest. They begin, so that no worker is left alone with them at the end.
    """
    marked = [
        path for path in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    parity = ROOT / "tests" / "kernels" / "parity"
    return [str(path) for path in (*(path for path in marked if parity not in path.parents), parity) if path.exists()]


class Outcomes:
    """A plugin of pytest that emits failures, and counts of outcomes."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.counts: Counter[str] = Counter()
        self.warnings: set[str] = set()
        self._started = self._counted = time.monotonic()

    def pytest_runtest_logreport(self, report) -> None:
        """A phase of a test has ended."""
        if report.failed:
            self._failure(report.nodeid, "failed" if report.when == "call" else "error", report)
        elif report.skipped:
            self.counts["skipped"] += 1
        elif report.when == "call":
            self.counts["passed"] += 1
        if time.monotonic() - self._counted > EVERY:
            self.count()

    def pytest_collectreport(self, report) -> None:
        """A file was read."""
        if report.failed:
            self._failure(report.nodeid, "error", report)

    def pytest_warning_recorded(self, warning_message) -> None:
        """A test gave a warning; each is emitted once."""
        text = f"{warning_message.category.__name__}: {warning_message.message}".splitlines()[0][:300]
        if text not in self.warnings:
            self.warnings.add(text)
            self.emit({"row": f"warning {len(self.warnings)}", "first_line": text})

    def count(self) -> None:
        """Emit the counts so far."""
        self._counted = time.monotonic()
        numbers = {word: self.counts[word] for word in ("passed", "failed", "error", "skipped")}
        self.emit({"row": "all", **numbers, "seconds": self._counted - self._started})

    def _failure(self, test: str, outcome: str, report) -> None:
        self.counts[outcome] += 1
        self.emit({"row": test, "outcome": outcome, "first_line": first_line(report)})


def first_line(report) -> str:
    """Where a test failed, and the first line of its message."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        lines = [line for line in str(report.longrepr).splitlines() if line.strip()]
        return next((line for line in reversed(lines) if line.startswith("E ")), (lines or [""])[-1])[:300]
    path = Path(crash.path)
    place = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return f"{place}:{crash.lineno}: {(str(crash.message).splitlines() or [''])[0]}"[:300]
