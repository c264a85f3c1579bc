"""Writes the page."""

import base64
import io
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from aime_fast.errors import UserError
from aime_fast.reporting.figures import save_reconstruction_grid
from aime_fast.reporting.page.curves import charts
from aime_fast.reporting.page.drawings import ENDINGS, HORIZONS, drawings
from aime_fast.reporting.page.run_record import RunRecord, read_run

SHOWN_OTHERWISE = ("learning", "reconstructions")
"""The page has curves that answer to the mouse, and a grid with what the slots do."""
ROWS_OF_SUMMARY = (
    ("psnr", "reconstruction, dB", "val"),
    ("psnr_mean_frame", "mean training frame, dB", "val"),
    ("ssim", "reconstruction, SSIM", "val"),
    ("bits_per_dim", "negative ELBO, bits per dimension", "val"),
    ("kl_z", "KL of z, nats a frame", "val"),
    ("action_nats", "what the actions tell the prior, nats a frame", "val"),
    *(
        (f"psnr_ahead_{h}{e}", f"{h} ahead in one batch, dB: {name}", "val")
        for h in HORIZONS
        for e, name in ENDINGS.items()
    ),
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
        splits = ["refit" if split == "val" and run.learnt_anew else split for run in runs]
        values = [run.history.values(name, split) for run, split in zip(runs, splits, strict=True)]
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
    """(caption, PNG in base64) of every figure that the run has data for and the page shows in no other way."""
    found = [(drawing.caption, drawing.draw) for drawing in drawings(run) if drawing.name not in SHOWN_OTHERWISE]
    grid = [("Held-out frames: rebuilt, predicted, and what the slots do", _grid(run.snapshot))] if run.snapshot else []
    return grid + [(caption, _png(draw())) for caption, draw in found]


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
