"""The result of an evaluation as files, and its figures read back from them."""

import csv
import io
import json
from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from aime_fast.errors import UserError
from aime_fast.evaluation.intervals import Estimate
from aime_fast.evaluation.reconstruction import BITS, KL, NATS
from aime_fast.evaluation.report import LPIPS, SSIM

FILE = "evaluation.json"
"""In a run's folder: its last evaluation on its own data. The report of the run reads it."""
UNITS = {"psnr": "dB", "moving": "dB", "lost": "dB", KL: "nats", NATS: "nats", BITS: "bits"}
BY_PREDICTION = ("psnr", "moving", SSIM, LPIPS)


class Figure(NamedTuple):
    """What one number of a result is about."""

    metric: str
    prediction: str
    """Empty for the reconstruction."""
    ahead: int
    """Frames ahead; 0 for the reconstruction and for whole windows."""


def figures_of(result: Mapping[str, Any]) -> dict[Figure, Estimate]:
    """The estimates in a `Report` that was read from JSON; without those that are nan."""
    found = {Figure(name, "", 0): value for name, value in result["reconstruction"].items()}
    for metric in BY_PREDICTION:
        found |= _ahead(metric, result.get(metric, {}))
    found |= _ahead("lost", {"another window's actions": result.get("lost", [])})
    found |= _ahead("share of the actions' effect", result.get("share", {}))
    for name, errors in result.get("errors", {}).items():
        values = [{"mean": x, "low": None, "high": None, "sums": [], "counts": []} for x in errors]
        found |= _ahead("RMSE", {name: values})
    for features, rows in result.get("frechet", {}).items():
        found |= {Figure(f"Frechet distance, {features}", name, 0): value for name, value in rows.items()}
    return {figure: _estimate(value) for figure, value in found.items() if value["mean"] is not None}


def _ahead(metric: str, rows: Mapping[str, list[Any]]) -> dict[Figure, Any]:
    return {Figure(metric, name, h + 1): value for name, values in rows.items() for h, value in enumerate(values)}


def _estimate(value: Mapping[str, Any]) -> Estimate:
    mean, low, high = (nan if value[name] is None else float(value[name]) for name in ("mean", "low", "high"))
    return Estimate(mean, low, high, value["sums"], value["counts"])


def as_csv(result: Mapping[str, Any]) -> str:
    """One line a figure: metric, unit, prediction, frames ahead, value, interval, and number of windows."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["metric", "unit", "prediction", "frames_ahead", "value", "low", "high", "windows"])
    for figure, value in figures_of(result).items():
        ends = ["" if end != end else f"{end:.6g}" for end in (value.low, value.high)]
        unit, windows = UNITS.get(figure.metric, ""), f"{sum(value.counts):.6g}" if value.counts else ""
        table.writerow([figure.metric, unit, *figure[1:], f"{value.mean:.6g}", *ends, windows])
    return text.getvalue()


def write_whole(path: Path, text: str) -> None:
    """Write under another name until it is complete: whoever finds the file finds all of it. `OSError` if it can't."""
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_named(option: str, path: Path, text: str) -> None:
    """`write_whole` to the file that an option names; `UserError` if it can't be written."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"cannot write {option} {path} ({error.strerror}); name another file") from error


def read_result(path: Path) -> dict[str, Any] | None:
    """What an evaluation wrote to `path`; None if there is nothing, or nothing that can be read."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and "reconstruction" in result else None
