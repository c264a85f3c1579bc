"""The scripts of docs/examples, each executed as its reader would, with small sizes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aime_fast.data.collect.collect import collect
from aime_fast.doctor import choose_graphics
from aime_fast.training.trainer import DMCVBTrainer

pytestmark = pytest.mark.long
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
MAX_LINES = 100


def execute(name, *options):
    """What an example prints. It fails the test if it fails."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, options)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def row(text, name):
    """The numbers in the line of a table that begins with `name`."""
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return [float(number) for number in re.findall(r"(?<![\w-])-?(?:\d+\.?\d*|nan)", line.removeprefix(name))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short training with rewards on collected episodes."""
    pytest.importorskip("dm_control")
    if choose_graphics()[0] is None:
        pytest.skip("nothing renders here")
    folder = tmp_path_factory.mktemp("examples")
    data = collect("reacher_easy", folder / "data", episodes=3, length=40, val_episodes=1, processes=1)
    tasks = ("elbo", "perceiver", "predictive", "reward")
    trainer = DMCVBTrainer(preset="debug", steps=5, tasks=tasks, data=str(data), out=str(folder / "run"))
    trainer.fit()
    trainer.close()
    return folder / "run"


def test_own_recordings(tmp_path):
    options = ("--out", tmp_path / "own", "--episodes", 4, "--preset", "debug", "--steps", 3)
    printed = execute("own_recordings.py", *options)
    imagined, copied = row(printed, "imagined"), row(printed, "last frame copied")
    assert len(imagined) == len(copied) == 10
    assert all(5 < value < 60 for value in imagined + copied)
    assert copied[0] > copied[-1], "the square moves away from where it was last seen"
    command = [sys.executable, str(EXAMPLES / "own_recordings.py"), "--out", str(tmp_path / "own")]
    again = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert again.returncode == 2
    assert again.stderr == f"error: --out {tmp_path / 'own'} is there already; choose a new folder\n"


def test_probe_state(run):
    printed = execute("probe_state.py", run, "--windows", 4, "--components", 3)
    for name in ("z_t", "h_t", "z_t, untrained model", "PCA-3 of the frame"):
        lines = [line for line in printed.splitlines() if line.startswith(name + "  ")]
        assert len(lines) == 1 and len(lines[0].split()[-2:]) == 2
        assert all(float(value) <= 1 for value in lines[0].split()[-2:])


def test_filter_frames(run):
    printed = execute("filter_frames.py", run, "--frames", 4)
    assert "reacher_easy" in printed
    for name in ("reconstructed", "expected, mean of 4 futures", "the frame before"):
        assert 5 < row(printed, name)[-1] < 60


def test_plan_cem(run):
    options = (
        "--length",
        6,
        "--horizon",
        4,
        "--candidates",
        8,
        "--rounds",
        1,
        "--random-episodes",
        3,
        "--discount",
        0.8,
    )
    printed = execute("plan_cem.py", run, "--episodes", 2, *options)
    deviation, changed = row(printed, "imagined returns")
    assert deviation > 0 and changed >= 0
    assert row(printed, "CEM  ")[0] == 2 and row(printed, "random actions")[0] == 3 and row(printed, "data  ")[0] == 2
    for name in ("CEM  ", "random actions", "data  "):
        _, mean, median, deviation, least, most = row(printed, name)
        assert 0 <= least <= median <= most <= 12 and least <= mean <= most and deviation >= 0


@pytest.mark.parametrize("name", ["plan_cem.py", "probe_state.py", "filter_frames.py"])
def test_a_mistake_is_one_line_and_exit_code_2(name, tmp_path):
    command = [sys.executable, str(EXAMPLES / name), str(tmp_path / "nowhere")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ") and len(ended.stderr.splitlines()) == 1


def test_every_example_is_short_named_in_the_list_and_executed_here():
    listed = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < MAX_LINES
        assert path.read_text().count("\n# %% ") >= 4, "cells"
        assert f"[{path.name}]({path.name})" in listed
        assert f'execute("{path.name}"' in Path(__file__).read_text()
