"""What trackers are given is really in their files, and a tracker that fails does not end a run."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import yaml
from PIL import Image
from stored_values import by_step, tensorboard_events, trackio_rows, wandb_rows

from aime_fast.errors import UserError
from aime_fast.reporting.catalogue import tag
from aime_fast.reporting.charts.__main__ import PICTURES
from aime_fast.reporting.metrics_log import read_metrics
from aime_fast.reporting.trackers import registry
from aime_fast.reporting.trackers.registry import Trackers, check_trackers
from aime_fast.reporting.trackers.tracker import run_id

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SIZES = ["--preset", "debug", "--loader.batch-size", "2", "--loader.sequence-length", "7"]
INSTALLED = [name for name in registry.TRACKERS if find_spec(name)]
EVERYWHERE = {"prediction/reconstructions", *PICTURES}


def train(folder, trackers, *arguments):
    """Train in a process of its own, because clients leave threads and settings behind; what it printed."""
    offline = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "TRACKIO_DIR": str(folder / "trackio")}
    every = ["--logging.log-every", "1", "--logging.figures-every", "0", "--logging.tracker", trackers]
    done = subprocess.run(
        [sys.executable, "-m", "aime_fast", "train", *every, *arguments],
        cwd=folder,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr and "cannot" not in done.stderr
    return done


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of two steps that goes on for one, followed by all trackers that are installed."""
    folder = tmp_path_factory.mktemp("tracked")
    train(folder, ",".join(INSTALLED), *SIZES, "--steps", "2", "--out", "run")
    train(folder, ",".join(INSTALLED), "--resume", "run", "--steps", "3", "--override")
    return folder


def expected(folder):
    """{(tag, step): value} of the finite values in metrics.jsonl."""
    return {
        (tag(name, row["split"]), row["step"]): value
        for row in read_metrics(folder / "run")
        for name, value in row.items()
        if name not in ("step", "split", "time", "nonfinite") and value is not None
    }


@pytest.mark.long
def test_tensorboard_has_every_value_picture_and_histogram(tracked):
    events = tensorboard_events(tracked / "run")
    found = {(t, e.step): e.value for t in events.Tags()["scalars"] for e in events.Scalars(t)}
    assert {place: found[place] for place in expected(tracked)} == pytest.approx(expected(tracked), rel=1e-6)
    assert "kl/kl_z/val" in events.Tags()["scalars"]
    assert set(events.Tags()["images"]) == EVERYWHERE
    assert {event.step for event in events.Images("latent/plane")} == {2, 3}
    for name in EVERYWHERE:
        assert events.Images(name)[-1].encoded_image_string.startswith(b"\x89PNG")
    bars = events.Histograms("mixture/usage")[-1].histogram_value
    assert sum(bars.bucket) == pytest.approx(1.0, abs=1e-5)
    assert set(events.Tags()["histograms"]) == {"mixture/usage", "mixture/stick_weights"}


@pytest.mark.skipif("wandb" not in INSTALLED, reason="needs wandb")
def test_wandb_has_every_value_and_goes_on_under_its_id(tracked):
    rows, ids = wandb_rows(tracked / "run")
    assert set(ids) == {run_id(tracked / "run")} and len(ids) == 2
    found = by_step([(row["step"], row) for row in rows])
    assert {place: found[place] for place in expected(tracked)} == pytest.approx(expected(tracked))
    pictures = {name for row in rows for name, value in row.items() if "image-file" in str(value)}
    assert pictures == EVERYWHERE
    files = list((tracked / "run" / "wandb").glob("offline-run-*/files/media/images/**/*.png"))
    assert len(files) == 2 * len(EVERYWHERE)
    assert any("mixture/usage" in row and row["mixture/usage"]["_type"] == "histogram" for row in rows)


@pytest.mark.skipif("trackio" not in INSTALLED, reason="needs trackio")
def test_trackio_has_every_value_in_one_run(tracked):
    rows, _ = trackio_rows(tracked / "trackio")
    assert {name for name, _, _ in rows} == {f"run-{run_id(tracked / 'run')}"}
    found = by_step([(step, values) for _, step, values in rows])
    assert {place: found[place] for place in expected(tracked)} == pytest.approx(expected(tracked))
    kinds = {name: value["_type"] for *_, values in rows for name, value in values.items() if isinstance(value, dict)}
    assert {name for name, kind in kinds.items() if kind == "trackio.image"} == EVERYWHERE
    assert kinds["mixture/stick_weights"] == "trackio.histogram"


def test_the_settings_of_the_run_are_kept(tracked):
    settings = yaml.safe_load((tracked / "run" / "config.yaml").read_text())
    assert settings["logging"]["tracker"] == INSTALLED


class Recorder:
    """A tracker that keeps what it is given, and fails as often as it is told."""

    where = "in memory"

    def __init__(self, failing=0):
        self.failing, self.given, self.closed = failing, [], False

    def scalars(self, step, values):
        if self.failing:
            self.failing -= 1
            raise RuntimeError("the network\nis down")
        self.given.append((step, values))

    picture = histogram = text = scalars

    def close(self):
        self.closed = True


def followed(monkeypatch, tmp_path, **recorders):
    """`Trackers` over these, and the list of their notes."""
    notes = []
    monkeypatch.setattr(registry, "TRACKERS", {name: lambda run, r=r: r for name, r in recorders.items()})
    trackers = Trackers(list(recorders), tmp_path, {}, None, notes.append)
    assert notes == [f"{name}: in memory" for name in recorders]
    notes.clear()
    return trackers, notes


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(monkeypatch, tmp_path):
    bad, good = Recorder(failing=2), Recorder()
    trackers, notes = followed(monkeypatch, tmp_path, bad=bad, good=good)
    for step in range(1, 6):
        trackers.scalars(step, {"a": 1.0})
    trackers.close()
    assert [step for step, _ in good.given] == [1, 2, 3, 4, 5]
    assert [step for step, _ in bad.given] == [3, 4, 5]
    assert notes == [
        "step 1: bad failed (the network is down); training continues",
        "bad has not got all of the run: 2 of its calls failed",
    ]
    assert bad.closed and good.closed


def test_a_tracker_that_keeps_failing_is_left_out(monkeypatch, tmp_path):
    bad = Recorder(failing=100)
    trackers, notes = followed(monkeypatch, tmp_path, bad=bad)
    for step in range(1, 9):
        trackers.scalars(step, {})
    assert bad.failing == 100 - registry.GIVE_UP
    assert bad.closed and not trackers
    assert notes[1] == "step 3: bad failed 3 times in a row; training continues without it"
    assert len(notes) == 2


def test_a_tracker_that_cannot_begin_is_no_reason_to_stop(monkeypatch, tmp_path):
    notes = []
    monkeypatch.setattr(registry, "TRACKERS", {"bad": lambda run: 1 / 0})
    trackers = Trackers(["bad"], tmp_path, {}, None, notes.append)
    trackers.scalars(1, {"a": 1.0})
    assert notes == ["bad cannot be used (division by zero); training continues without it"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandbb", "unknown tracker 'wandbb'; did you mean 'wandb'? choose from tensorboard, wandb, trackio, none"),
        ("wandb", "--logging.tracker wandb needs the package wandb: pip install 'aime-fast[wandb]'"),
    ],
)
def test_a_wrong_name_and_a_missing_package_are_one_line(monkeypatch, name, message):
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(UserError) as mistake:
        check_trackers(["tensorboard", name])
    assert str(mistake.value) == message


def test_tensorboard_forgets_what_a_resumed_run_writes_again(tmp_path):
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "a.png")
    for resume, values in ((None, [2.5, 9.0]), (1, [1.25])):
        trackers = Trackers(["tensorboard"], tmp_path, {}, resume, lambda line: None)
        for step, value in enumerate(values, (resume or 0) + 1):
            trackers.scalars(step, {"loss/total/train": value})
        trackers.picture(2, "prediction/frames", tmp_path / "a.png")
        trackers.histogram(2, "mixture/usage", np.array([0.2, 0.0, 0.8]))
        trackers.text(2, "findings/a", "why")
        trackers.close()
    events = tensorboard_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss/total/train")] == [(1, 2.5), (2, 1.25)]
    (picture,) = events.Images("prediction/frames")
    assert (picture.width, picture.height) == (6, 4)
    bars = events.Histograms("mixture/usage")[-1].histogram_value
    assert (list(bars.bucket_limit), list(bars.bucket)) == ([1, 2, 3], [0.2, 0.0, 0.8])
    assert "findings/a/text_summary" in events.Tags()["tensors"]
