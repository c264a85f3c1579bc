"""Scalars of a run: `metrics.jsonl` always, TensorBoard events beside it when asked."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

_RESERVED = frozenset(("step", "split", "time", "nonfinite"))


class MetricsLog:
    """Appends one JSON object a line to `folder/metrics.jsonl`.

    A row is `{"step": 120, "split": "train", "time": 1.7e9, "total": 3.4, ...}`: the optimiser step (int, counted
    from 1), the split, seconds since 1970, then the values under their own names. Every row is valid JSON: a value
    that is not finite is written as null, and the row gets `"nonfinite": {"total": "nan"}` to tell which it was.
    Each row reaches the file before `write` returns, so a kill loses at most a torn last line, which the next
    opening removes.

    Args:
        folder: the run's folder; made if missing.
        tensorboard: also write scalars and pictures as TensorBoard events into `folder/tensorboard`.
        resume_step: the run goes on from this step: rows of later steps, which will be written again, are dropped
            (the file is replaced in one rename). None keeps every row and appends.
    """

    def __init__(self, folder: str | Path, tensorboard: bool = True, resume_step: int | None = None) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _trim(self.path, resume_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the log
        self._events: Any = None
        if tensorboard:
            # Slow to import, and wanted only here.
            from torch.utils.tensorboard import SummaryWriter

            purge = None if resume_step is None else resume_step + 1
            self._events = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=purge)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one row. Values are numbers; `ValueError` for one named `step`, `split`, `time` or `nonfinite`."""
        if taken := _RESERVED & values.keys():
            raise ValueError(f"metric names {sorted(taken)} belong to the row itself")
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
        """Put a picture file (PNG) among the TensorBoard events under `name`; nothing without TensorBoard."""
        if self._events is not None:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self._events.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write everything out and close the files; a second call does nothing."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The whole rows of `folder/metrics.jsonl` in order; a torn last line, left by a kill, is passed over."""
    with open(Path(folder) / "metrics.jsonl", "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _trim(path: Path, last_step: int | None) -> None:
    """Drop a torn last line, and rows after `last_step`; the old file stays whole until the new one replaces it."""
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
