"""A run knows itself: every verb reads a run, a checkpoint and an export, with the run's own settings and data."""

import json
import os
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from aime_fast.commands.main import main
from aime_fast.data.files import SAMPLE
from aime_fast.training.checkpoint.opening import open_run

SIZES = ["--loader.batch-size", "2", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "4"]
ACTIONS = 6
"""As many as the shipped sample's, so that sizes alone don't tell them apart."""


def write_walker(path, scale=1.0, environment="walker_walk", actions=ACTIONS):
    """Four episodes of 24 frames of drifting stripes, one held out, that name their environment."""
    draw = np.random.default_rng(0)
    rows = (np.arange(64)[:, None] * 4 + 7 * np.arange(96)[:, None, None]) % 256
    with h5py.File(path, "w") as file:
        file["observations"] = np.broadcast_to(rows[..., None], (96, 64, 64, 3)).astype(np.uint8)
        file["actions"] = scale * draw.uniform(-1, 1, (96, actions)).astype(np.float32)
        file["rewards"], file["episode_ends"] = np.zeros(96, np.float32), np.arange(24, 97, 24)
    shards = f"{path}.shards"
    assert main(["pack", str(path), "--environment", environment, "--out", shards]) == 0
    return shards


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`walker`, `run`, of two steps on it and started there with relative paths, and `model`, the run's export."""
    folder, before = tmp_path_factory.mktemp("place"), os.getcwd()
    os.rename(write_walker(folder / "walker.h5"), folder / "walker")
    os.chdir(folder)
    try:
        train = ["--preset", "debug", "--data", "walker", *SIZES, "--steps", "2", "--optim.lr", "1e-4"]
        assert main(["train", *train, "--out", "run"]) == 0
        assert main(["export", "run", "--out", "model"]) == 0
    finally:
        os.chdir(before)
    return folder


FORMS = {"run": "run", "checkpoint": "run/checkpoints/step-00000002", "export": "model"}
"""What RUN may be."""


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_verb_reads_it_with_the_runs_own_data(place, tmp_path, monkeypatch, capsys, form):
    monkeypatch.chdir(tmp_path)  # not where the run was started
    run, own = str(place / form), f"data: {place / 'walker'} (walker_walk), on which the run was trained\n"
    assert main(["evaluate", run, "--context", "2", "--horizon", "4", "--json", "found.json"]) == 0
    assert capsys.readouterr().err == own
    facts = json.loads((tmp_path / "found.json").read_text())["facts"]
    assert (facts["data"], facts["environment"]) == (str(place / "walker"), "walker_walk")
    assert main(["imagine", run, "--context", "2", "--horizon", "4", "--out", "future.png"]) == 0
    assert capsys.readouterr().err == own
    assert main(["export", run, "--out", "copy"]) == 0
    again, first = (load_file(folder / "model.safetensors") for folder in (tmp_path / "copy", place / "model"))
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert (tmp_path / "copy" / "config.json").read_bytes() == (place / "model" / "config.json").read_bytes()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_is_opened(place, form):
    opened = open_run(place / form)
    assert opened.exported == (form == "model") and opened.step == 2
    assert (opened.config.preset, opened.config.optim.lr, opened.config.model.action_dim) == ("debug", 1e-4, ACTIONS)
    assert opened.data.path == str(place / "walker") and opened.data.environment == "walker_walk"
    assert opened.data.action_dim == ACTIONS and -1 <= opened.data.action_low[0] < 0.5 < opened.data.action_high[0] <= 1


def evaluate(capsys, run, *flags):
    """Exit code and lines on standard error."""
    capsys.readouterr()
    code = main(["evaluate", str(run), "--context", "2", "--horizon", "4", *map(str, flags)])
    return code, capsys.readouterr().err.splitlines()


def test_other_data_are_taken_and_said(place, tmp_path, capsys):
    code, lines = evaluate(capsys, place / "run", "--data", SAMPLE)
    assert code == 0
    assert lines == [
        f"data: {SAMPLE} by --data; the run was trained on {place / 'walker'} (walker_walk)",
        "warning: the data are of cheetah_run and the run's of walker_walk: its actions may mean something else",
        f"not kept as {place / 'run' / 'evaluation.json'}: these are other data than the run's own",
    ]
    code, lines = evaluate(capsys, place / "run", "--data", write_walker(tmp_path / "loud.h5", scale=100.0))
    assert code == 0 and len(lines) == 3
    assert re.fullmatch(r"warning: number 0 of the data's actions goes from -\d\d.*in training from -0\..*", lines[1])


def test_other_sizes_are_refused(place, tmp_path, capsys):
    code, lines = evaluate(capsys, place / "model", "--data", write_walker(tmp_path / "few.h5", actions=2))
    assert code == 2
    assert lines[1:] == [
        "error: the data's actions have 2 numbers and the model's 6; name the data it was trained on with --data"
    ]


def test_data_that_are_gone_or_changed(place, tmp_path, capsys):
    for name in ("run", "walker"):
        shutil.copytree(place / name, tmp_path / name)
    (place / "walker").rename(place / "elsewhere")
    try:
        code, lines = evaluate(capsys, tmp_path / "run")
        assert code == 2 and len(lines) == 1
        assert re.fullmatch(r"error: .*its data .*walker cannot be read .*; say where they are with --data", lines[0])
        assert evaluate(capsys, tmp_path / "run", "--data", tmp_path / "walker")[0] == 0
        shutil.rmtree(tmp_path / "walker")
        os.rename(write_walker(tmp_path / "other.h5", scale=0.9), place / "walker")
        code, lines = evaluate(capsys, tmp_path / "run")
        assert code == 0 and lines[1:] == [f"warning: {place / 'walker'} has changed since the run was trained"]
    finally:
        shutil.rmtree(place / "walker", ignore_errors=True)
        (place / "elsewhere").rename(place / "walker")


def resume(capsys, *flags):
    """Exit code and lines on standard error."""
    capsys.readouterr()
    code = main(["train", *map(str, flags)])
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("form", ["run", "run/checkpoints/step-00000001", "run/checkpoints", "auto"])
def test_resume_needs_no_other_flag(place, tmp_path, monkeypatch, capsys, form):
    """A run that was cut after its first step goes on to its second with the settings and data it had."""
    monkeypatch.chdir(place)
    flags = ["--preset", "debug", "--data", "walker", *SIZES, "--steps", "2", "--optim.lr", "1e-4"]
    run = tmp_path / "run"
    assert main(["train", *flags, "--checkpoint-every", "1", "--out", str(run)]) == 0
    whole = load_file(run / "checkpoints" / "step-00000002" / "weights.safetensors")
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    monkeypatch.chdir(tmp_path)
    arguments = ["--out", "run", "--resume", "auto"] if form == "auto" else ["--resume", form]
    code, lines = resume(capsys, *arguments)
    assert code == 0, lines
    assert any(line.endswith("checkpoints/step-00000001") for line in lines if line.startswith("resuming from"))
    assert not any(line.startswith("settings changed") for line in lines)
    resumed = load_file(run / "checkpoints" / "step-00000002" / "weights.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert (settings["data"], settings["optim"]["lr"]) == (str(place / "walker"), 1e-4)


def test_what_resume_refuses(place, tmp_path, capsys):
    code, lines = resume(capsys, "--resume", place / "model")
    assert (code, len(lines)) == (2, 1) and "is an exported model" in lines[0]
    code, lines = resume(capsys, "--resume", place / "run", "--preset", "small")
    assert (code, len(lines)) == (2, 1) and "was trained with preset debug: leave --preset out" in lines[0]
    code, lines = resume(capsys, "--resume", place / "run", "--steps", "3")
    assert (code, len(lines)) == (2, 1) and "steps 2 -> 3" in lines[0] and "--override" in lines[0]
    other = write_walker(tmp_path / "other.h5", scale=0.5)
    code, lines = resume(capsys, "--resume", place / "run", "--data", other)
    assert (code, len(lines)) == (2, 1) and f"data {place / 'walker'} -> {other}; use" in lines[0]
    (place / "run" / "config.yaml").rename(tmp_path / "config.yaml")
    try:
        (place / "run" / "config.yaml").write_text("steps: [")
        code, lines = resume(capsys, "--resume", place / "run")
        assert (code, len(lines)) == (2, 1) and "has no settings that can be read" in lines[0]
    finally:
        (tmp_path / "config.yaml").rename(place / "run" / "config.yaml")


def test_data_that_only_moved_are_the_same(place, tmp_path, capsys):
    """A copy elsewhere is not a changed setting."""
    shutil.copytree(place / "walker", tmp_path / "moved")
    shutil.copytree(place / "run", tmp_path / "run")
    code, lines = resume(capsys, "--resume", tmp_path / "run", "--data", tmp_path / "moved")
    assert code == 0 and not any("settings changed" in line for line in lines), lines


def test_an_export_without_the_runs_facts_still_gives_its_model(place, tmp_path, capsys):
    """As an older version wrote it."""
    shutil.copytree(place / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    content = json.loads(path.read_text())
    del content["run"]
    path.write_text(json.dumps(content))
    code, lines = evaluate(capsys, tmp_path / "model")
    assert code == 2 and lines[0].endswith("does not say what it was trained on; name data with --data")
    code, lines = evaluate(capsys, tmp_path / "model", "--data", place / "walker")
    assert code == 0 and lines[1].startswith("warning: the run does not say what its actions mean")


def test_the_best_checkpoint_is_named_where_a_newer_one_exists(place, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    checkpoints = run / "checkpoints"
    assert main(["evaluate", str(run), "--context", "2", "--horizon", "4"]) == 0
    assert "weights:" not in capsys.readouterr().err
    shutil.copytree(checkpoints / "step-00000002", checkpoints / "step-00000003")
    (checkpoints / "latest").write_text("step-00000003")
    assert main(["evaluate", str(run), "--context", "2", "--horizon", "4"]) == 0
    said = f"weights: the best checkpoint by validation, {checkpoints / 'step-00000002'}; the newest is step-00000003"
    assert said in capsys.readouterr().err.splitlines()


def test_a_run_and_its_data_are_told_apart(place, capsys):
    """Both have a `manifest.json` somewhere; what is named in place of the other is said to be what it is."""
    data, run = str(place / "walker"), str(place / "run")
    for verb in (["evaluate", data], ["export", data, "--out", "x"], ["train", "--resume", data]):
        assert main(verb) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {data} holds data, not a run; give a run")
    for verb in (["inspect", run], ["pack", run, "--out", "x"], ["train", "--preset", "debug", "--data", run]):
        assert main(verb) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {run}: a run, not data; its config.yaml")


def test_a_folder_with_a_configuration_of_ones_own_is_left_alone(place, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("mine")
    train = ["train", "--preset", "debug", "--data", str(place / "walker"), *SIZES, "--steps", "1"]
    assert main([*train, "--out", str(tmp_path)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
