"""The result of an evaluation, as text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from typing import Any

from aime_fast.evaluation.intervals import Estimate
from aime_fast.evaluation.open_loop import CONSTANT, COPY, MEAN, ONE, OTHER, OTHER_TRUTH
from aime_fast.evaluation.parts import Parts
from aime_fast.evaluation.predictors import Predictors
from aime_fast.evaluation.probe import Probe
from aime_fast.evaluation.share import REFERENCE

HORIZONS = (1, 2, 5, 10, 15, 20, 30, 50)
"""Horizons in the table, in frames ahead."""
FIRST = (MEAN, ONE, OTHER, OTHER_TRUTH, COPY, CONSTANT)
AT_REFERENCE, AT_OWN = f"of a reconstruction at {REFERENCE:.0f} dB", "of the model's own reconstruction"
"""What the actions can cost depends on how well a model reconstructs."""
NAME, CELL = 40, 13

ByHorizon = list[Estimate]
"""Entry 0 is one frame ahead."""


@dataclass
class Report:
    """What was found about one model on one data set. Parts that were not asked for are empty."""

    facts: dict[str, str | int]
    """Checkpoint, data, environment, context, strides and numbers of windows and episodes."""
    reconstruction: dict[str, Estimate] = field(default_factory=dict)
    """`psnr` and `moving`, in dB."""
    psnr: dict[str, ByHorizon] = field(default_factory=dict)
    """In dB by prediction."""
    moving: dict[str, ByHorizon] = field(default_factory=dict)
    """The same over the pixels that move."""
    errors: dict[str, list[float]] = field(default_factory=dict)
    """RMSE of the tasks' heads."""
    possible: dict[str, ByHorizon] = field(default_factory=dict)
    """dB that a perfect model would lose by the wrong actions: `AT_REFERENCE` and `AT_OWN`."""
    share: dict[str, ByHorizon] = field(default_factory=dict)
    """The model's loss over that."""
    probe: Probe | None = None
    parts: Parts | None = None
    predictors: Predictors | None = None
    remarks: list[str] = field(default_factory=list)
    """What could not be found, and why: one line each."""

    def to_json(self) -> str:
        """All values by the names of the fields; nan is null."""
        return json.dumps(_without_nan(asdict(self)), indent=1) + "\n"

    def __str__(self) -> str:
        context, windows, stride = (self.facts[name] for name in ("context", "windows", "stride"))
        lines = [
            f"reconstruction PSNR {self.reconstruction['psnr']} dB, over moving pixels "
            f"{self.reconstruction['moving']} dB, held-out windows at stride {self.facts['reconstruction stride']}",
            f"open loop from {context} frames, {windows} held-out windows at stride {stride}, PSNR in dB, "
            f"± half of the 95 % interval over {self.facts['episodes']} episodes",
            *_table("frames ahead", self.psnr),
            *(_plain(f"{name}, RMSE", values) for name, values in self.errors.items()),
            *_table("over moving pixels", self.moving),
        ]
        if self.share:
            lines += _table("actions: dB that they can cost", self.possible)
            lines += _table("actions: share that the model shows", self.share)
        if self.probe:
            lines += [f"{'linear probe, mean R2':{NAME}}{'position':>{CELL}}{'velocity':>{CELL}}"]
            for source in self.probe.r2:
                values = (self.probe.mean(source, kind) for kind in ("position", "velocity"))
                lines.append(f"{source:{NAME}}" + "".join(f"{value:{CELL}.2f}" for value in values))
        lines += [str(table) for table in (self.parts, self.predictors) if table]
        return "\n".join([*lines, *self.remarks])


def _table(title: str, rows: Mapping[str, ByHorizon]) -> list[str]:
    ordered = [name for name in FIRST if name in rows] + [name for name in rows if name not in FIRST]
    shown = [h for h in HORIZONS if h <= len(rows[ordered[0]])]
    lines = [f"{title:{NAME}}" + "".join(f"{h:{CELL}d}" for h in shown)]
    for name in ordered:
        lines.append(f"{name:{NAME}}" + "".join(f"{rows[name][h - 1]!s:>{CELL}}" for h in shown))
    return lines


def _plain(name: str, values: Sequence[float]) -> str:
    shown = [h for h in HORIZONS if h <= len(values)]
    return f"{name:{NAME}}" + "".join(f"{values[h - 1]:{CELL}.4f}" for h in shown)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value
