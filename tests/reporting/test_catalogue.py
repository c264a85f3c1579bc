"""Every metric that a run logs is explained, grouped, and in the page."""

from pathlib import Path

import pytest

from aime_fast.reporting.catalogue import METRICS, metric, tag
from aime_fast.reporting.metrics_log import read_metrics
from aime_fast.training.trainer import DMCVBTrainer

ROOT = Path(__file__).parents[2]
NOT_METRICS = {"step", "split", "time", "nonfinite"}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    tasks = ("elbo", "perceiver", "predictive", "reward")
    with_loader = {"loader": {"sequence_length": 12, "batch_size": 2}, "logging": {"tracker": "none"}}
    trainer = DMCVBTrainer(preset="debug", steps=2, out=str(out), tasks=tasks, **with_loader)
    trainer.fit()
    trainer.close()
    return {name for row in read_metrics(out) for name in row} - NOT_METRICS


def test_a_run_logs_nothing_unexplained(logged):
    assert {name for name in logged if metric(name) is None} == set()


def test_what_is_explained_is_logged(logged):
    found = {metric(name).name for name in logged}
    assert {entry.name for entry in METRICS} - found == set()


def test_names_are_unique_and_every_column_is_filled():
    names = [entry.name for entry in METRICS]
    assert len(set(names)) == len(names)
    assert all(all(vars(entry).values()) for entry in METRICS)


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("kl_z", "val", "kl/kl_z/val"),
        ("psnr_ahead_10_copy", "val", "prediction/psnr_ahead_10_copy/val"),
        ("grad_norm_shared_mine", "train", "gradients/grad_norm_shared_mine/train"),
        ("rgb_cosine_elbo_reward", "train", "gradients/rgb_cosine_elbo_reward/train"),
        ("my_own_loss", "train", "task/my_own_loss/train"),
    ],
)
def test_a_tag_begins_with_the_group(name, split, expected):
    assert tag(name, split) == expected


def test_the_page_has_every_metric():
    page = (ROOT / "docs" / "metrics.md").read_text()
    missing = [e.name for e in METRICS if f"| `{e.name}` | {e.unit} | {e.healthy} | {e.meaning} |" not in page]
    assert missing == []
