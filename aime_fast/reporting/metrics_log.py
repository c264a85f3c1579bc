"""The scalars of a run as `metrics.jsonl`."""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aime_fast.reporting.json_lines import JsonLines, read_lines

NAME = "metrics.jsonl"
_RESERVED = frozenset(("step", "split", "time", "nonfinite"))


class MetricsLog(JsonLines):
    """Appends one JSON object per line to `folder/metrics.jsonl`.

    A row is `{"step": 120, "split": "train", "time": 1.7e9, "total": 3.4, ...}`: the optimiser step (int, from 1), the
    split, seconds since 1970, then the values by name. Every row is valid JSON: a value that is not finite becomes
    null, and the row gets `"nonfinite": {"total": "nan"}`.

    Args:
        folder: the run's folder; made if missing.
        resume_step: drop the rows after this step, which a resumed run writes again. None keeps every row.
    """

    def __init__(self, folder: str | Path, resume_step: int | None = None) -> None:
        super().__init__(Path(folder) / NAME, resume_step)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one row of numbers; `ValueError` for a value named `step`, `split`, `time` or `nonfinite`."""
        if taken := _RESERVED & values.keys():
            raise ValueError(f"metric names {sorted(taken)} are reserved; rename the metric")
        numbers = {name: float(value) for name, value in values.items()}
        row: dict[str, Any] = {"step": int(step), "split": split, "time": round(time.time(), 3)}
        row |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        if broken := {name: str(value) for name, value in numbers.items() if not math.isfinite(value)}:
            row["nonfinite"] = broken
        self.append(row)


def read_metrics(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The complete rows of `folder/metrics.jsonl` in order; an incomplete last line is skipped."""
    yield from read_lines(Path(folder) / NAME)
