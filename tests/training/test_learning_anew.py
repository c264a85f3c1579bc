"""After the last step of a run its dynamics learn anew: the verbs take them, the checkpoints do not change."""

import json
import os
import re
import shutil
import signal

import pytest
import torch
from launching import run_ranks
from recording import tiny_options, write_recording

from aime_fast.commands.main import main
from aime_fast.reporting.page.run_record import read_run
from aime_fast.training.checkpoint.loading import load_model
from aime_fast.training.checkpoint.opening import REFITTED, open_run
from aime_fast.training.trainer import DMCVBTrainer

NEW = {"dynamics", "prior", "attention_prior"}
"""What reads h, where no task has a head."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """A complete run whose dynamics have learnt anew."""
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path_factory.mktemp("anew") / "run", steps=4, refit_steps=3))
    return trainer.fit()


@pytest.fixture
def run(done, tmp_path):
    """A copy of it."""
    return shutil.copytree(done.folder, tmp_path / "copy")


def changed(model, other):
    """The parts that differ, whether or not the choice of what is kept does."""
    ours, theirs = model.state_dict(), other.state_dict()
    different = {name for name, x in ours.items() if not torch.equal(x, theirs[name])}
    return {name.split(".")[0] for name in different if not name.startswith("decoder.keeping.")}


def test_verbs_take_the_model_with_the_new_dynamics(done):
    opened, trained = open_run(done.folder), open_run(done.folder, refitted=False)
    assert opened.folder == done.folder / REFITTED and opened.exported and opened.step == trained.step
    best = done.folder / "checkpoints" / (done.folder / "checkpoints" / "best").read_text()
    assert trained.folder == best and changed(trained.model(), load_model(best)) == set()
    assert changed(opened.model(), trained.model()) == NEW


def test_the_run_is_validated_once_more_and_its_page_says_so(done):
    rows = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "refit"] == [4]
    of = {split: max((row["psnr"], row["kl_z"]) for row in rows if row["split"] == split) for split in ("val", "refit")}
    assert of["val"] != of["refit"]
    record = read_run(done.folder)
    assert "Its dynamics learnt anew after the last step." in record.summary
    assert record.held_out("kl_z") == of["refit"][1]
    assert (done.folder / "figures" / "step-00000004-refitted.png").is_file()


def test_checkpoints_are_those_of_training_alone(data, done, tmp_path):
    plain = DMCVBTrainer(**tiny_options(data, tmp_path / "plain", steps=4)).fit()
    assert not (plain.folder / REFITTED).exists()
    for name in ("weights.safetensors", "rank-0-of-1.safetensors"):
        assert (plain.checkpoint / name).read_bytes() == (done.checkpoint / name).read_bytes()


def test_a_complete_run_does_it_once(data, run, capsys):
    before = (run / REFITTED / "model.safetensors").stat().st_mtime_ns
    DMCVBTrainer(**tiny_options(data, run, steps=4, refit_steps=3, resume="auto")).fit()
    assert "they have done so already" in capsys.readouterr().err
    assert (run / REFITTED / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_that_goes_on_does_it_again(data, run, capsys):
    options = tiny_options(data, run, steps=9, refit_steps=3, resume="auto", override=True)
    trainer = DMCVBTrainer(**options)
    trainer.fit(until=6)  # a pause is no end
    assert "learn anew" not in capsys.readouterr().err
    newest = run / "checkpoints" / "step-00000006"
    (run / "checkpoints" / "best").write_text(newest.name)  # the dynamics of step 4 belong to other weights now
    said = []
    assert open_run(run, said.append).folder == newest
    assert said == [f"dynamics: those of training; {run / REFITTED} belongs to other weights"]
    assert trainer.fit().steps == 9
    opened = open_run(run)
    assert opened.folder == run / REFITTED
    assert changed(opened.model(), open_run(run, refitted=False).model()) == NEW


def test_where_it_cannot_be_a_line_says_why_and_the_run_is_complete(tmp_path, capsys):
    data = write_recording(tmp_path / "recording.pt")
    content = torch.load(data)
    keep = 24  # two episodes: one for training, one held out
    torch.save({name: column[:keep] for name, column in content.items()}, data)
    assert DMCVBTrainer(**tiny_options(data, tmp_path / "run", steps=2, refit_steps=2)).fit().steps == 2
    said = capsys.readouterr().err
    assert "they stay as they were trained: 1 training episodes have 4 frames or more, and two are needed" in said
    assert open_run(tmp_path / "run").folder.name == "step-00000002"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["aime_fast.refit.of_run.refit", "aime_fast.training.learning_anew.keep"])
def test_a_signal_says_how_to_do_it_later(data, tmp_path, monkeypatch, capsys, number, place):
    monkeypatch.setattr(place, lambda *_: os.kill(os.getpid(), number))
    flags = ["--preset", "debug", "--data", data, "--loader.batch-size", "2", "--loader.sequence-length", "4"]
    flags += ["--steps", "2", "--refit-steps", "2", "--out", str(tmp_path / "run")]
    assert main(["train", *flags]) == 128 + number
    said = capsys.readouterr().err
    assert re.search(
        rf"stopped by signal {number} after step 2; saved. Go on with: .* --resume {tmp_path / 'run'}\n", said
    )
    assert not (tmp_path / "run" / "lock").exists() and not (tmp_path / "run" / REFITTED).exists()
    monkeypatch.undo()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert open_run(tmp_path / "run").refit_of is not None


def test_a_signal_in_the_last_step_comes_before_it(data, tmp_path, monkeypatch):
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run", steps=2, refit_steps=2))
    save = trainer.checkpoints.finish
    monkeypatch.setattr(trainer.checkpoints, "finish", lambda: (os.kill(os.getpid(), signal.SIGTERM), save()))
    assert trainer.fit().signal == signal.SIGTERM and not (tmp_path / "run" / REFITTED).exists()


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("CUDA out of memory")])
def test_what_fails_leaves_a_complete_run(data, tmp_path, monkeypatch, capsys, error):
    def failing(*_):
        raise error

    monkeypatch.setattr("aime_fast.refit.of_run.refit", failing)
    assert DMCVBTrainer(**tiny_options(data, tmp_path / "run", steps=2, refit_steps=2)).fit().signal == 0
    assert "they stay as they were trained" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_folder_is_named_left_aside_and_made_again(data, run, file):
    os.truncate(run / REFITTED / file, 100)
    said = []
    assert open_run(run, said.append).folder.parent == run / "checkpoints"
    assert any(f"{run / REFITTED} is damaged" in line for line in said)
    DMCVBTrainer(**tiny_options(data, run, steps=4, refit_steps=3, resume="auto")).fit()
    assert open_run(run).folder == run / REFITTED


def test_an_export_of_the_run_has_the_new_dynamics_and_refits_from_the_checkpoint(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert changed(load_model(tmp_path / "out"), load_model(run)) == set()
    assert main(["export", str(run), "--out", str(tmp_path / "again"), "--refit", "--refit-steps", "3"]) == 0
    assert changed(load_model(tmp_path / "again"), load_model(run)) == set(), "equal seeds, equal steps"


@pytest.mark.slow
def test_the_first_of_two_ranks_does_it(data, tmp_path):
    for text, code in run_ranks(2, "anew_worker.py", data, str(tmp_path / "run")):
        assert code == 0, text
    assert changed(load_model(tmp_path / "run"), load_model(tmp_path / "run" / "checkpoints" / "step-00000002")) == NEW
