"""A run knows what the actions of its recording meant, so no verb has to be told again."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest

from aime_fast.commands.main import main
from aime_fast.data.store import open_store
from aime_fast.training.checkpoint.opening import open_run

SIZES = ["--loader.batch-size", "2", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "4"]
SHORT = ["--context", "2", "--horizon", "4"]


def write_recording(path, zero=None, seed=0, columns=("is_first",)):
    """Four episodes of 24 rows with columns of time steps; `zero` is the row of each whose action is zero."""
    draw = np.random.default_rng(seed)
    actions = draw.uniform(-1, 1, (96, 2)).astype(np.float32)
    if zero is not None:
        actions[np.arange(0, 96, 24) + zero] = 0
    rows = (np.arange(64)[:, None] * 4 + 7 * np.arange(96)[:, None, None]) % 256
    with h5py.File(path, "w") as file:
        file["observations"] = np.broadcast_to(rows[..., None], (96, 64, 64, 3)).astype(np.uint8)
        file["actions"], file["rewards"], file["episode_ends"] = actions, np.zeros(96), np.arange(24, 97, 24)
        for column in columns:
            file[column] = np.arange(96) % 24 == 0
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`own.h5`, whose content decides nothing; `run`, told that actions led to frames; `model`, its export."""
    folder, before = tmp_path_factory.mktemp("place"), os.getcwd()
    write_recording(folder / "own.h5")
    os.chdir(folder)
    try:
        train = ["--preset", "debug", "--data", "own.h5", *SIZES, "--checkpoint-every", "1", "--steps", "2"]
        assert main(["train", *train, "--out", "untold"]) == 2
        assert main(["train", *train, "--out", "run", "--actions", "led"]) == 0
        assert main(["export", "run", "--out", "model"]) == 0
    finally:
        os.chdir(before)
    return folder


def said(capsys, *arguments):
    """Exit code and lines on standard error."""
    capsys.readouterr()
    code = main([*map(str, arguments)])
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("form", ["run", "model"])
def test_a_run_reads_its_recording_as_it_was_told_once(place, tmp_path, capsys, form):
    run = place / form
    assert said(capsys, "evaluate", run, *SHORT)[0] == 0
    assert said(capsys, "imagine", run, *SHORT, "--out", tmp_path / "future.png")[0] == 0
    assert said(capsys, "export", run, "--out", tmp_path / "copy")[0] == 0
    shutil.copy(place / "own.h5", tmp_path / "moved.h5")
    assert said(capsys, "evaluate", tmp_path / "copy", *SHORT, "--data", tmp_path / "moved.h5")[0] == 0
    opened = open_run(run)
    assert opened.data.actions.stored == "led" and opened.data.actions.evidence.startswith("--actions led says so")
    own = open_store(place / "own.h5", "val", actions=opened.reading_of_actions(str(place / "own.h5"), None))
    with h5py.File(place / "own.h5") as file:
        assert np.array_equal(own.actions, file["actions"][73:])  # the last episode's first action led to no frame


def test_resume_keeps_it_and_refuses_another(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000002")
    code, lines = said(capsys, "train", "--resume", tmp_path / "run", "--actions", "follows")
    assert (code, len(lines)) == (2, 1), lines
    assert "actions led -> follows" in lines[0] and "--override" in lines[0]
    code, lines = said(capsys, "train", "--resume", tmp_path / "run")
    assert code == 0 and any(line.startswith("actions led to the frame of their row") for line in lines), lines


def test_other_data_are_decided_apart(place, tmp_path, capsys):
    other = write_recording(tmp_path / "other.h5", seed=1, columns=("is_first", "discount"))
    code, lines = said(capsys, "evaluate", place / "run", *SHORT, "--data", other)
    assert code == 2 and "nothing shows whether actions led to or follow" in lines[-1] and "--actions led" in lines[-1]
    assert said(capsys, "evaluate", place / "run", *SHORT, "--data", other, "--actions", "led")[0] == 0
    code, lines = said(capsys, "evaluate", place / "run", *SHORT, "--data", tmp_path / "missing.h5")
    assert code == 2 and lines[-1].startswith("error: ")


def test_another_meaning_is_said(place, tmp_path, capsys):
    later = write_recording(tmp_path / "later.h5", zero=23, columns=("is_first", "discount"))
    code, lines = said(capsys, "evaluate", place / "model", *SHORT, "--data", later)
    assert code == 0
    assert lines[1:] == [
        "warning: actions of the data follow the frame of their row (they are zero on 0 of 4 first rows and on 4 of 4 "
        "last rows), those of training led to the frame of their row (--actions led says so; they are zero on 0 of 4 "
        "first rows and on 0 of 4 last rows): check that both are so"
    ]


def test_asking_for_what_the_content_shows_changes_nothing(place, tmp_path, capsys):
    """A run that found its convention may be resumed with the option that says the same."""
    own = write_recording(tmp_path / "own.h5", zero=0)
    train = ["--preset", "debug", "--data", own, *SIZES, "--steps", "2", "--checkpoint-every", "1"]
    assert said(capsys, "train", *train, "--out", tmp_path / "run")[0] == 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["config"]["actions"] is None and state["data"]["actions"]["stored"] == "led"
    code, lines = said(capsys, "train", "--resume", tmp_path / "run", "--actions", "led")
    assert code == 0, lines
    code, lines = said(capsys, "train", "--resume", tmp_path / "run", "--actions", "follows")
    assert code == 2 and "actions led -> follows" in lines[0]
