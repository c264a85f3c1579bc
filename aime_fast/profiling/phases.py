"""The phases of a run, each under one name: for torch's profiler, and for Nsight when asked.

| phase | what it covers |
|---|---|
| `data` | reading a batch and drawing its random numbers, on the thread of the prefetcher |
| `wait` | waiting for that thread |
| `forward`, `backward/TASK`, `balance`, `step`, `averages` | the parts of a step as written (`training/step.py`) |
| `gather` | ZeRO-3 makes the parameters whole |
| `replay` | the launch of a captured step, which has no other phases |
| `log`, `validation`, `checkpoint` | what follows some steps |

A phase may lie within another; time belongs to the innermost one.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch.profiler import record_function

from aime_fast.errors import UserError

IN_A_STEP = ("wait", "forward", "backward", "balance", "step", "averages", "gather", "replay")
"""Phases of the training thread in each step."""
OCCASIONAL = ("log", "validation", "checkpoint")
"""Phases that follow some steps only."""
MARKED = "profiled steps"
"""The range around the steps that Nsight captures."""


def is_phase(name: str) -> bool:
    """Whether a range has the name of a phase; torch opens ranges of its own."""
    return name.partition("/")[0] in ("data", *IN_A_STEP, *OCCASIONAL)


class Marks(Protocol):
    """NVTX ranges of one thread, and one range that spans threads."""

    def push(self, name: str) -> None:
        """Open a range of this thread."""

    def pop(self) -> None:
        """Close the innermost range of this thread."""

    def spanning(self, name: str) -> AbstractContextManager[None]:
        """A range of all threads."""


_marks: Marks | None = None


def phase(name: str) -> AbstractContextManager[object]:
    """A range of torch's profiler, and of NVTX after `mark_phases`; some microseconds where nobody records."""
    return record_function(name) if _marks is None else _marked(name, _marks)


@contextmanager
def _marked(name: str, marks: Marks) -> Iterator[None]:
    marks.push(name)
    try:
        with record_function(name):
            yield
    finally:
        marks.pop()


def mark_phases() -> Marks:
    """Mark every phase from now on as an NVTX range; `UserError` where neither torch nor `nvtx` can."""
    global _marks
    _marks = _TorchMarks() if torch.cuda.is_available() else _PackageMarks()
    return _marks


def unmark_phases() -> None:
    """End what `mark_phases` began, between phases."""
    global _marks
    _marks = None


class _TorchMarks:
    """The ranges of a torch that is built for CUDA."""

    def push(self, name: str) -> None:
        torch.cuda.nvtx.range_push(name)

    def pop(self) -> None:
        torch.cuda.nvtx.range_pop()

    @contextmanager
    def spanning(self, name: str) -> Iterator[None]:
        number = torch.cuda.nvtx.range_start(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_end(number)


class _PackageMarks:
    """The ranges of the package `nvtx`, which needs no CUDA."""

    def __init__(self) -> None:
        try:
            import nvtx
        except ImportError as error:
            raise UserError(
                "NVTX ranges need the package nvtx where torch has no GPU: pip install 'aime-fast[profile]'"
            ) from error
        self._nvtx: Any = nvtx

    def push(self, name: str) -> None:
        self._nvtx.push_range(name)

    def pop(self) -> None:
        self._nvtx.pop_range()

    @contextmanager
    def spanning(self, name: str) -> Iterator[None]:
        number = self._nvtx.start_range(name)
        try:
            yield
        finally:
            self._nvtx.end_range(number)
