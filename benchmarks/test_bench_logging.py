"""What logging adds to training: rows with findings and trackers, and pictures, next to the steps of the same run.

A row comes every ten steps and pictures every 200, by default. So the baseline of a row is ten of the run's own steps,
and that of pictures 200. The drawing of figures is a process of its own; what the run waits for it is in the row.
"""

import time
from collections import defaultdict

import pytest

from aime_fast import DMCVBTrainer
from aime_fast.training.reporter import Reporter
from aime_fast.training.step import TrainingStep

ALL = "tensorboard,wandb,trackio"
TIMED = {Reporter: ("train", "look", "pictures"), TrainingStep: ("__call__",)}


def timed(monkeypatch):
    """Seconds of each call of the methods of `TIMED`, by name, as they come."""
    seconds = defaultdict(list)
    for owner, names in TIMED.items():
        for name in names:
            monkeypatch.setattr(owner, name, _timed(getattr(owner, name), seconds[name]))
    return seconds


def _timed(method, seconds):
    def call(*arguments):
        start = time.perf_counter()
        try:
            return method(*arguments)
        finally:
            seconds.append(time.perf_counter() - start)

    return call


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("preset", "steps", "tracker"),
    [
        ("debug", 200, "none"),
        ("debug", 200, "tensorboard"),
        ("debug", 200, ALL),
        ("small", 50, "none"),
        ("small", 50, ALL),
    ],
)
def test_cost_of_logging(record, monkeypatch, tmp_path, preset, steps, tracker):
    for package in {"wandb", "trackio"} & set(tracker.split(",")):
        pytest.importorskip(package, exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    seconds = timed(monkeypatch)
    logging = {"tracker": tracker, "figures_every": steps // 2}
    loader = {"windows_per_epoch": 10**5}  # the only validation is at the end
    options = {"preset": preset, "steps": steps, "logging": logging, "loader": loader, "refit_steps": 0}
    trainer = DMCVBTrainer(out=tmp_path / "run", **options)
    trainer.fit()
    trainer.close()
    loader = trainer.config.loader
    shape = f"{preset} B={loader.batch_size} T={loader.sequence_length}"
    steps_taken, form = seconds["__call__"], f"tracker {tracker}"
    options = {"unit": "s", "shape": shape, "dtype": "float32"}
    ten, many = ([count * each for each in steps_taken] for count in (10, 200))
    record("logging, a row", form, seconds["train"], baseline=("ten steps", ten), **options)
    shown = [picture + look for picture, look in zip(seconds["pictures"], seconds["look"], strict=False)]
    record("logging, pictures", form, shown, baseline=("200 steps", many), **options)
