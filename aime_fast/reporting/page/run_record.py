"""What a run's folder says of the run, complete or not."""

import json
import time
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from aime_fast.errors import UserError
from aime_fast.reporting.findings.history import Facts, History
from aime_fast.reporting.findings.watch import Finding, findings_of
from aime_fast.reporting.metrics_log import read_metrics
from aime_fast.reporting.snapshot import Snapshot, read_snapshot

KEPT = {"": "mean of the futures", "_copy": "last frame copied", "_other_actions": "mean, another window's actions"}
"""Endings of `psnr_ahead_5` in rows of validation, and the rows of the same predictions in a kept evaluation."""
ALIVE_SECONDS = 60.0
"""A run whose lock was touched this long ago, or less, goes on."""


@dataclass
class RunRecord:
    """One run, as far as it has come."""

    folder: Path
    config: dict[str, Any]
    history: History
    rows: int
    findings: list[Finding]
    snapshot: Snapshot | None
    status: str
    """`complete`, `going on`, `stopped early` or `ended without warning`."""
    seconds: float
    """From the first row to the last."""
    evaluation: dict[str, Any] | None = None
    """What `aime-fast evaluate RUN` kept, or None."""
    remarks: list[str] = field(default_factory=list)
    """What could not be read, and why."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def best(self, name: str) -> tuple[float, int] | None:
        """The largest validation value and its step."""
        values, steps = self.history.values(name, "val"), self.history.steps(name, "val")
        return max(zip(values, steps, strict=True)) if values else None

    @property
    def learnt_anew(self) -> bool:
        """Whether dynamics and prior learnt anew after the last step."""
        anew, trained = (self.history.steps("psnr", split) for split in ("refit", "val"))
        return len(anew) > 0 and anew[-1] == trained[-1]

    def held_out(self, name: str) -> float | None:
        """The newest value on held-out frames: by the model with new dynamics, if these have learnt anew."""
        anew = self.history.values(name, "refit") if self.learnt_anew else ()
        return anew[-1] if anew else self.history.held_out(name)

    @property
    def summary(self) -> str:
        """The run in two or three sentences."""
        config, history = self.config, self.history
        data = Path(config["data"]).name if config["data"] else "the recorded sample"
        words = [
            f"Preset {config['preset']} on {data}: {history.step:,} steps in {_clock(self.seconds)}, {self.status}."
        ]
        if self.learnt_anew:
            words.append("Its dynamics learnt anew after the last step.")
        if best := self.best("psnr"):
            words.append(f"The best validation PSNR is {best[0]:.2f} dB, at step {best[1]:,}.")
        own, copy, other = self._five_ahead()
        if own is not None and copy is not None:
            words.append(f"Five frames ahead it predicts at {own:.2f} dB; copying gives {copy:.2f}")
            words[-1] += f", another window's actions {other:.2f}." if other is not None else "."
        found = ", ".join(dict.fromkeys(finding.name for finding in self.findings))
        words.append(f"Findings: {found}." if found else "No findings.")
        return " ".join(words)

    def _five_ahead(self) -> list[float | None]:
        """PSNR in dB five frames ahead of model, copying, other actions: as `evaluate` found it, else in a batch."""
        kept = [(self.evaluation or {}).get("psnr", {}).get(row, []) for row in KEPT.values()]
        found = [values[4]["mean"] if len(values) > 4 else None for values in kept]
        return [self.held_out(f"psnr_ahead_5{ending}") for ending in KEPT] if found[0] is None else found

    @property
    def again(self) -> str:
        """The command that repeats the run."""
        return f"aime-fast train --config {self.folder / 'config.yaml'} --out NEW_FOLDER"


def read_run(folder: str | Path) -> RunRecord:
    """Read what there is; `UserError` for a folder that holds no run."""
    path, remarks = Path(folder), list[str]()
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        facts = Facts.of(config)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no run: it has no config.yaml; give the folder that `train` wrote") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no run ({error}); give the folder that `aime-fast train` wrote") from error
    rows = _rows(path, remarks)
    trained = [row for row in rows if row["split"] != "refit"]
    times = [row["time"] for row in trained if isinstance(row.get("time"), int | float)]
    try:
        snapshot = read_snapshot(path)
    except UserError as error:
        snapshot = None
        remarks.append(str(error))
    if not rows:
        remarks.append("no row of metrics has been written yet")
    elif snapshot is None:
        remarks.append("there are no figures of the model yet: the first validation makes them")
    return RunRecord(
        folder=path,
        config=config,
        history=History(facts).extend(rows),
        rows=len(rows),
        findings=findings_of(config, rows),
        snapshot=snapshot,
        status=_status(path, config, trained),
        seconds=times[-1] - times[0] if times else 0.0,
        evaluation=_evaluation(path, rows, remarks),
        remarks=remarks,
    )


def _rows(path: Path, remarks: list[str]) -> list[dict[str, Any]]:
    try:
        rows = list(read_metrics(path))
    except OSError:
        return []
    except ValueError as error:
        remarks.append(f"metrics.jsonl is damaged ({error}); its rows up to there are shown")
        return list(_readable(path / "metrics.jsonl"))
    return [row for row in rows if isinstance(row, dict) and {"step", "split"} <= row.keys()]


def _readable(path: Path) -> list[dict[str, Any]]:
    """The rows before the first that is no JSON object."""
    found = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not (isinstance(row, dict) and {"step", "split"} <= row.keys()):
            break
        found.append(row)
    return found


def _evaluation(path: Path, rows: list[dict[str, Any]], remarks: list[str]) -> dict[str, Any] | None:
    file = path / "evaluation.json"
    if not file.exists():
        return None
    if rows and file.stat().st_mtime < rows[-1].get("time", 0.0):
        remarks.append(f"{file} is older than the newest row; run `aime-fast evaluate {path}` again")
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        remarks.append(f"{file} is damaged ({error}); run `aime-fast evaluate {path}` again")
        return None


def _status(path: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lock = path / "lock"
    if lock.exists():
        return "going on" if time.time() - lock.stat().st_mtime < ALIVE_SECONDS else "ended without warning"
    total, step = config.get("steps"), rows[-1]["step"] if rows else 0
    epoch = next((row["epoch"] for row in reversed(rows) if isfinite(row.get("epoch") or float("nan"))), 0.0)
    ends = [total and step >= total, config.get("epochs") and epoch >= config["epochs"]]
    times = [row["time"] for row in rows]
    ends.append(config.get("minutes") and times and times[-1] - times[0] > 55 * config["minutes"])
    return "complete" if any(ends) else "stopped early"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
