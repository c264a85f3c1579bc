"""The result of an evaluation, as text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from typing import Any

from aime_fast.evaluation.intervals import Estimate
from aime_fast.evaluation.open_loop import CONSTANT, COPY, MEAN, ONE, OTHER, OTHER_TRUTH, shown
from aime_fast.evaluation.probe import Probe
from aime_fast.evaluation.share import REFERENCE
from aime_fast.evaluation.worth.parts import Parts
from aime_fast.evaluation.worth.predictors import Predictors

FIRST = (MEAN, ONE, OTHER, OTHER_TRUTH, COPY, CONSTANT)
AT_REFERENCE, AT_OWN = f"of a reconstruction at {REFERENCE:.0f} dB", "of the model's own reconstruction"
"""What the actions can cost depends on how well a model reconstructs."""
SSIM, LPIPS, FVD = "ssim", "lpips", "fvd"
STATES, HALVES = "state probe", "recorded frames, two halves"
NETWORK = "lpips weights"
"""Fact: hash of the image network."""
NAME, CELL = 40, 13

ByHorizon = list[Estimate]
"""Entry 0 is one frame ahead."""


@dataclass
class Report:
    """What was found about one model on one data set. Parts that were not asked for are empty."""

    facts: dict[str, str | int | None]
    """Checkpoint, data, environment, context, horizon, strides and numbers of windows and episodes."""
    reconstruction: dict[str, Estimate] = field(default_factory=dict)
    """`psnr` and `moving` in dB, `ssim`, `lpips`, `kl_z` and `nats` a frame, `bits_per_dim`."""
    psnr: dict[str, ByHorizon] = field(default_factory=dict)
    """In dB by prediction."""
    moving: dict[str, ByHorizon] = field(default_factory=dict)
    """The same over the pixels that move."""
    ssim: dict[str, ByHorizon] = field(default_factory=dict)
    """Structural similarity by prediction; nan at horizons that the table does not show."""
    lpips: dict[str, ByHorizon] = field(default_factory=dict)
    """LPIPS likewise, lower is better; empty without weights."""
    frechet: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """Frechet distances of whole windows from the recorded ones: by features (`FVD`, `STATES`) and prediction."""
    lost: ByHorizon = field(default_factory=list)
    """dB of PSNR that another window's actions cost, paired by window."""
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
        return json.dumps(without_nan(asdict(self)), indent=1) + "\n"

    def __str__(self) -> str:
        context, windows, stride = (self.facts[name] for name in ("context", "windows", "stride"))
        lines = [
            *self._reconstruction(),
            f"open loop from {context} frames, {windows} held-out windows at stride {stride}, PSNR in dB, "
            f"± half of the 95 % interval over {self.facts['episodes']} episodes",
            *_table("frames ahead", self.psnr),
            *_table("actions", {"dB that another window's cost": self.lost}),
            *(_plain(f"{name}, RMSE", values) for name, values in self.errors.items()),
            *_table("over moving pixels", self.moving),
            *_table("SSIM", self.ssim, 3),
            *(_table("LPIPS, lower is better", self.lpips, 3) if self.lpips else []),
        ]
        if self.share:
            lines += _table("actions: dB that they can cost", self.possible)
            lines += _table("actions: share that the model shows", self.share)
        lines += self._distances()
        if self.probe:
            lines += [f"{'linear probe, mean R2':{NAME}}{'position':>{CELL}}{'velocity':>{CELL}}"]
            for source in self.probe.r2:
                values = (self.probe.mean(source, kind) for kind in ("position", "velocity"))
                lines.append(f"{source:{NAME}}" + "".join(f"{value:{CELL}.2f}" for value in values))
        lines += [str(table) for table in (self.parts, self.predictors) if table]
        horizon, longest = self.facts["horizon"], self.facts["longest horizon"]
        if horizon != longest:
            lines.append(f"episodes allow up to --horizon {longest}")
        return "\n".join([*lines, *self.remarks])

    def _reconstruction(self) -> list[str]:
        found = self.reconstruction
        lpips = f", LPIPS {found[LPIPS].text(3)}" if LPIPS in found else ""
        return [
            f"reconstruction PSNR {found['psnr']} dB, over moving pixels {found['moving']} dB, "
            f"SSIM {found[SSIM].text(3)}{lpips}, held-out windows at stride {self.facts['reconstruction stride']}",
            f"a frame costs {found['nats'].text(0)} nats ({found['bits_per_dim'].text(3)} bits a dimension), "
            f"of which z {found['kl_z'].text(1)}",
        ]

    def _distances(self) -> list[str]:
        lines = []
        for features, title in ((FVD, "FVD"), (STATES, "Frechet distance, probe of the state")):
            if rows := self.frechet.get(features):
                lines += [title, *(f"{name:{NAME}}{value.text(3):>{CELL + 5}}" for name, value in rows.items())]
        missing = [] if self.lpips else ["LPIPS (--lpips-weights FILE)"]
        missing += [] if FVD in self.frechet else ["FVD (--fvd-weights FILE)"]
        return [*lines, f"not measured: {', '.join(missing)}"] if missing else lines


def ordered(rows: Mapping[str, object]) -> list[str]:
    """The names of predictions: those of every report first."""
    return [name for name in FIRST if name in rows] + [name for name in rows if name not in FIRST]


def _table(title: str, rows: Mapping[str, ByHorizon], digits: int = 2) -> list[str]:
    names = ordered(rows)
    columns = shown(len(rows[names[0]]))
    lines = [f"{title:{NAME}}" + "".join(f"{h:{CELL}d}" for h in columns)]
    for name in names:
        lines.append(f"{name:{NAME}}" + "".join(f"{rows[name][h - 1].text(digits):>{CELL}}" for h in columns))
    return lines


def _plain(name: str, values: Sequence[float]) -> str:
    return f"{name:{NAME}}" + "".join(f"{values[h - 1]:{CELL}.4f}" for h in shown(len(values)))


def without_nan(value: Any) -> Any:
    """The value with None instead of nan, which JSON lacks."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and isnan(value) else value
