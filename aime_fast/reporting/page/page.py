"""Writes the page."""

import base64
import io
import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from aime_fast.errors import UserError
from aime_fast.reporting.charts import gradients, mixture, slots
from aime_fast.reporting.charts.horizon import horizon
from aime_fast.reporting.figures import save_reconstruction_grid
from aime_fast.reporting.page.curves import charts
from aime_fast.reporting.page.run_record import RunRecord, read_run

HORIZONS = (1, 5, 10)
"""Frames ahead that validation measures."""
ENDINGS = {"": "model", "_other_actions": "another window's actions", "_copy": "last frame copied"}
ROWS_OF_SUMMARY = (
    ("psnr", "reconstruction, dB", "val"),
    ("psnr_mean_frame", "mean training frame, dB", "val"),
    ("ssim", "reconstruction, SSIM", "val"),
    ("bits_per_dim", "negative ELBO, bits per dimension", "val"),
    ("kl_z", "KL of z, nats a frame", "val"),
    ("action_nats", "what the actions tell the prior, nats a frame", "val"),
    *((f"psnr_ahead_{h}{e}", f"{h} ahead, dB: {name}", "val") for h in HORIZONS for e, name in ENDINGS.items()),
    ("effective_components", "components in use (effective number)", "val"),
    ("perplexity", "codes in use (perplexity)", "val"),
    ("frames_per_second", "frames/s", "train"),
    ("memory_gb", "memory, GB", "train"),
)


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """One page of the runs in `folders`, written atomically to `out`.

    Raises `UserError` for a folder without a run and for a page that cannot be written. A run that goes on, that ended
    without warning or whose files are damaged is shown as far as it can be read.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    runs = [read_run(folder) for folder in folders]
    environment = Environment(
        loader=PackageLoader("aime_fast.reporting.page", "."), autoescape=select_autoescape(), trim_blocks=True
    )
    page = environment.get_template("template.html").render(
        title=" and ".join(run.name for run in runs),
        runs=[_shown(run) for run in runs],
        comparison=_comparison(runs),
        groups=charts(runs),
        # `<` would end the script that holds it.
        data=json.dumps(charts(runs), allow_nan=False).replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    target = Path(out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(".unfinished.html")
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, target)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror}); give another file with --out") from error
    return target


def _comparison(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Rows of the table: a label and the newest value of each run, `-` where a run has none."""
    rows = []
    for name, label, split in ROWS_OF_SUMMARY:
        values = [run.history.values(name, split) for run in runs]
        if any(values):
            rows.append((label, [f"{series[-1]:,.4g}" if series else "-" for series in values]))
    return rows


def _shown(run: RunRecord) -> dict[str, Any]:
    return {
        "name": run.name,
        "summary": run.summary,
        "findings": run.findings,
        "remarks": run.remarks,
        "figures": _figures(run),
        "config": yaml.safe_dump(run.config, sort_keys=False),
        "again": run.again,
        "evaluation": run.evaluation,
    }


def _figures(run: RunRecord) -> list[tuple[str, str]]:
    """(caption, PNG in base64) of every figure that the run has data for."""
    found: list[tuple[str, str]] = []
    seen, history = run.snapshot, run.history
    if seen is not None:
        found.append(("Held-out frames: rebuilt, predicted, and what the slots do", _grid(seen)))
        drawn: list[tuple[str, Callable[[], Figure]]] = [
            ("Share of each slot in each cell", lambda: slots.masks(seen)),
            ("Where the slots look", lambda: slots.attention(seen)),
            ("How they move", lambda: slots.centres(seen)),
            ("The mixture over a window", lambda: mixture.over_time(seen)),
            ("Use of the components", lambda: mixture.usage(seen)),
            ("Sticks", lambda: mixture.sticks(seen)),
            ("Latents", lambda: mixture.latents(seen)),
            ("Codebook", lambda: mixture.codes(seen)),
        ]
        found += [(caption, _png(draw())) for caption, draw in drawn]
    if history.values("grad_norm"):
        found.append(("Conflict of the tasks", _png(gradients.conflicts(history))))
        found.append(("Rotation and swing", _png(gradients.angles(history))))
    curves = _curves(run)
    if curves:
        found.append(("Prediction by frames ahead", _png(horizon(curves, "held-out windows, from recorded actions"))))
    return found


def _curves(run: RunRecord) -> dict[str, dict[int, tuple[float, float, float]]]:
    """PSNR by frames ahead: from the run's evaluation where there is one, else from its last validation."""
    if run.evaluation and run.evaluation.get("psnr"):
        return {name: known for name, values in run.evaluation["psnr"].items() if (known := _kept_curve(values))}
    curves = {}
    for ending, name in ENDINGS.items():
        points = {h: run.history.held_out(f"psnr_ahead_{h}{ending}") for h in HORIZONS}
        known = {h: (value, value, value) for h, value in points.items() if value is not None}
        if known:
            curves[name] = known
    return curves


def _kept_curve(values: Sequence[dict[str, Any]]) -> dict[int, tuple[float, float, float]]:
    """Mean and interval by frames ahead; the interval of a single episode is its mean."""
    known = {h: value for h, value in enumerate(values, 1) if value["mean"] is not None}
    ends = {
        h: [value["mean"] if value[end] is None else value[end] for end in ("low", "high")]
        for h, value in known.items()
    }
    return {h: (value["mean"], ends[h][0], ends[h][1]) for h, value in known.items()}


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def _grid(seen: Any) -> str:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        save_reconstruction_grid(path, seen, f"step {int(seen.step)}")
        return base64.b64encode(path.read_bytes()).decode()
