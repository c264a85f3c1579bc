"""The scalars of a run as `metrics.jsonl`, and optionally as TensorBoard events."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
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
    at most an incomplete last line, which the next start removes.

    Args:
        folder: the run's folder; made if missing.
        tensorboard: also write scalars and pictures as TensorBoard events into `folder/tensorboard`.
        resume_step: drop the rows after this step, which a resumed run writes again. None keeps every row.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True, resume_step: int | None = None) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _trim(self.path, resume_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the log
        self._events: SummaryWriter | None = None
        if tensorboard:
            # Slow to import.
            from torch.utils import tensorboard as events

            purge = None if resume_step is None else resume_step + 1
            self._events = events.SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=purge)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one row of numbers; `ValueError` for a value named `step`, `split`, `time` or `nonfinite`."""
        if taken := _RESERVED & values.keys():
            raise ValueError(f"metric names {sorted(taken)} are reserved; rename the metric")
        numbers = {name: float(value) for name, value in values.items()}
        row: dict[str, Any] = {"step": int(step), "split": split, "time": round(time.time(), 3)}
        row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        if broken := {name: str(value) for name, value in numbers.items() if not math.isfinite(value)}:
            row["nonfinite"] = broken
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in numbers.items():
                self._events.add_scalar(f"{split}/{name}", value, step)

    def picture(self, step: int, name: str, path: str | Path) -> None:
        """Add a PNG file to the TensorBoard events as `name`; does nothing without TensorBoard."""
        if self._events is not None:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self._events.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files; a second call does nothing."""
        self._file.close()
        if self._events is not None:
            self._events.close()


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
