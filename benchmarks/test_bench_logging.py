"""What logging adds to training: rows with findings and trackers, and pictures, next to the steps of the same run.

Run with `make bench ARGS=benchmarks/test_bench_logging.py`. The target is that rows cost at most 1 % of the steps
between them, with the default intervals. `milliseconds_a_row` is compared with the step of a GPU too: 1 % of ten steps
of 8.64 ms (docs/gpu-check.md) is 0.86 ms. The drawing of figures is a process of its own; what it takes of the run's
time is in `share_of_pictures`.
"""

import statistics
import time
from collections import defaultdict

import pytest

from aime_fast import DMCVBTrainer
from aime_fast.training.reporter import Reporter
from aime_fast.training.step import TrainingStep

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
@pytest.mark.parametrize("tracker", ["none", "tensorboard", "tensorboard,wandb,trackio"])
@pytest.mark.parametrize(("preset", "steps"), [("debug", 400), ("small", 60)])
def test_cost_of_logging(benchmark, monkeypatch, tmp_path, preset, steps, tracker):
    for package in {"wandb", "trackio"} & set(tracker.split(",")):
        pytest.importorskip(package, exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    seconds = timed(monkeypatch)
    figures = steps // 2 if preset == "small" else 200
    logging = {"tracker": tracker, "figures_every": figures}
    loader = {"windows_per_epoch": 10**5}  # the only validation is at the end
    trainer = DMCVBTrainer(preset=preset, steps=steps, out=tmp_path / "run", logging=logging, loader=loader)
    benchmark.pedantic(trainer.fit, rounds=1)
    trainer.close()
    step, row = statistics.median(seconds["__call__"]), statistics.median(seconds["train"])
    picture = statistics.median(seconds["pictures"]) + statistics.median(seconds["look"])
    benchmark.extra_info |= {
        "milliseconds_a_step": 1e3 * step,
        "milliseconds_a_row": 1e3 * row,
        "share_of_rows": row / (10 * step),
        "share_of_pictures": picture / (200 * step),
        "target": {"share_of_rows": 0.01, "milliseconds_a_row": 0.86},
    }
