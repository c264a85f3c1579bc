"""Every figure is drawn for any sizes, shows its numbers, and names its axes."""

import io

import numpy as np
import pytest
from made_runs import config_of, made_snapshot, rows
from matplotlib.figure import Figure
from PIL import Image

from aime_fast.reporting.charts import gradients, mixture, slots
from aime_fast.reporting.charts.horizon import horizon
from aime_fast.reporting.findings.history import Facts, History

OF_SNAPSHOT = [
    *(getattr(mixture, name) for name in ("over_time", "usage", "sticks", "latents", "codes")),
    *(getattr(slots, name) for name in ("masks", "attention", "centres")),
]
SIZES = [
    {},
    {"frames": 1, "slots": 1, "components": 1, "dim": 1, "codes": 1, "sticks": False, "context": 1},
    {"frames": 20, "slots": 9, "components": 30, "grid": 8, "size": (32, 32), "dim": 3},
]


def shown(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return np.asarray(Image.open(buffer).convert("RGB"))


@pytest.mark.parametrize("sizes", SIZES, ids=["usual", "least", "large"])
@pytest.mark.parametrize("draw", OF_SNAPSHOT, ids=lambda draw: draw.__name__)
def test_a_figure_is_drawn_for_any_sizes(draw, sizes):
    figure = draw(made_snapshot(**sizes))
    assert isinstance(figure, Figure) and shown(figure).std() > 1


def history(tasks=None):
    config = config_of() | ({"tasks": list(tasks)} if tasks else {})
    return History(Facts.of(config)).extend(rows())


@pytest.mark.parametrize("tasks", [None, ["elbo"], ["elbo", "perceiver", "predictive", "reward"]])
def test_gradients_are_drawn_for_any_tasks(tasks):
    assert shown(gradients.conflicts(history(tasks))).std() > 1
    assert shown(gradients.angles(history(tasks))).std() > 1


def test_the_heat_map_is_symmetric_and_has_the_logged_cosines():
    heat = gradients.conflicts(history()).axes[0].images[0].get_array()
    np.testing.assert_allclose(heat[0], [1.0, 0.2, -0.3])
    np.testing.assert_allclose(heat, heat.T, equal_nan=True)


def test_bars_and_areas_have_the_snapshots_shares():
    seen = made_snapshot()
    bars = sorted(patch.get_height() for patch in mixture.usage(seen).axes[0].patches)
    np.testing.assert_allclose(bars, sorted(seen.usage), rtol=1e-6)
    top = max(area.get_paths()[0].vertices[:, 1].max() for area in mixture.over_time(seen).axes[0].collections)
    assert top == pytest.approx(1.0, abs=1e-5)


def test_the_title_has_the_perplexity_of_the_codes():
    seen = made_snapshot(codes=16)
    shares = seen.code_counts / seen.code_counts.sum()
    expected = np.exp(-sum(p * np.log(p) for p in shares if p > 0))
    assert f"perplexity {expected:.1f}" in mixture.codes(seen).axes[0].get_title()


def test_latents_lie_on_their_principal_axes():
    seen = made_snapshot()
    points = np.concatenate([dots.get_offsets() for dots in mixture.latents(seen).axes[0].collections])
    values = seen.latents.astype(float)
    variances = np.linalg.eigvalsh(np.cov(values.T))[::-1][:2]
    np.testing.assert_allclose(np.sort(points.var(0, ddof=1))[::-1], variances, rtol=1e-6)


def test_a_prior_without_sticks_is_said():
    figure = mixture.sticks(made_snapshot(sticks=False))
    assert "no sticks" in figure.axes[0].texts[0].get_text()


def test_the_horizon_curve_has_bands_and_names():
    figure = horizon({"model": {1: (30.0, 29.0, 31.0), 5: (27.0, 26.0, 28.0)}, "copy": {1: (28.0,) * 3}}, "a title")
    axis = figure.axes[0]
    assert [line.get_label() for line in axis.lines] == ["model", "copy"] and axis.get_ylabel() == "PSNR in dB"
    assert axis.collections[0].get_paths()[0].vertices[:, 1].min() == 26.0
