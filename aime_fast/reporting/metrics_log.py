"""The scalars of a run as `metrics.jsonl`, and optionally as TensorBoard events."""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_RESERVED = frozenset(("step", "split", "time", "nonfinite"))


class MetricsLog:
    """Appends one JSON object per line to `folder/metrics.jsonl`.

    A row is `{"step": 120, "split": "train", "time": 1.7e9, "total": 3.4, ...}`: the optimiser step (int, from 1), the
    split, seconds since 1970, then the values by name. Every row is valid JSON: a value that is not finite becomes
    null, and the row gets `"nonfinite": {"total": "nan"}`. A row is in the file when `write` returns, so a kill leaves
    at most an incomplete last line, which the next start removes. A row that cannot be written, as on a full disk, is
    dropped as a whole and counted in `dropped`; what is written later follows the last whole row.

    Args:
        folder: the run's folder; made if missing.
        tensorboard: also write scalars and pictures as TensorBoard events into `folder/tensorboard`.
        resume_step: drop the rows after this step, which a resumed run writes again. None keeps every row.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True, resume_step: int | None = None) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _trim(self.path, resume_step)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the log
        self.dropped = 0
        """Rows that could not be written."""
        self.failure: OSError | None = None
        """Why the latest of them could not; None again after one that could."""
        self._events: SummaryWriter | None = None
        self._hook = threading.excepthook
        if tensorboard:
            # Slow to import.
            from torch.utils import tensorboard as events

            purge = None if resume_step is None else resume_step + 1
            self._events = events.SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=purge)
            threading.excepthook = _without_events(self._hook)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one row of numbers; `ValueError` for a value named `step`, `split`, `time` or `nonfinite`."""
        if taken := _RESERVED & values.keys():
            raise ValueError(f"metric names {sorted(taken)} are reserved; rename the metric")
        numbers = {name: float(value) for name, value in values.items()}
        row: dict[str, Any] = {"step": int(step), "split": split, "time": round(time.time(), 3)}
        row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        if broken := {name: str(value) for name, value in numbers.items() if not math.isfinite(value)}:
            row["nonfinite"] = broken
        self._append(json.dumps(row, allow_nan=False).encode() + b"\n")
        with self._giving_up_events():
            if self._events is not None:
                for name, value in numbers.items():
                    self._events.add_scalar(f"{split}/{name}", value, step)

    def picture(self, step: int, name: str, path: str | Path) -> None:
        """Add a PNG file to the TensorBoard events as `name`; does nothing without TensorBoard."""
        with self._giving_up_events():
            if self._events is not None:
                pixels = np.asarray(Image.open(path).convert("RGB"))
                self._events.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files; a second call does nothing."""
        self._file.close()
        threading.excepthook = self._hook
        with self._giving_up_events():
            if self._events is not None:
                self._events.close()

    def _append(self, row: bytes) -> None:
        """Write a row whole or not at all."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            rest = row
            while rest:  # a disk that fills takes a part and fails at the next
                rest = rest[self._file.write(rest) :]
            self.failure = None
        except OSError as error:
            self.dropped, self.failure = self.dropped + 1, error
            with suppress(OSError):
                self._file.truncate(size)

    @contextmanager
    def _giving_up_events(self) -> Iterator[None]:
        """End the TensorBoard events at the first that cannot be written: their writer does not recover."""
        try:
            yield
        except OSError as error:
            self._events, self.failure = None, error


def _without_events(hook: Callable[[threading.ExceptHookArgs], object]) -> Callable[[threading.ExceptHookArgs], None]:
    """`hook`, but silent for a failed write of TensorBoard's thread: the next event reports it to its caller."""

    def quieter(failed: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(failed.thread).__module__.partition(".")[0] == "tensorboard"
        if not (of_tensorboard and isinstance(failed.exc_value, OSError)):
            hook(failed)

    return quieter


def read_metrics(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The complete rows of `folder/metrics.jsonl` in order; an incomplete last line is skipped."""
    with open(Path(folder) / "metrics.jsonl", "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _trim(path: Path, last_step: int | None) -> None:
    """Drop an incomplete last line, and rows after `last_step`, by one atomic rename."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n")]
    if last_step is not None:
        kept = [line for line in kept if json.loads(line)["step"] <= last_step]
    if len(kept) == len(lines):
        return
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
