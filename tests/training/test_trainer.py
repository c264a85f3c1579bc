"""The loop: it trains, resumes bit for bit, stops at a signal, and refuses what cannot work."""

import hashlib
import json
import math
import os
import shutil
import signal

import pytest
import torch
from recording import ACTIONS, tiny_options, write_recording
from safetensors.torch import load_file

from aime_fast.errors import UserError
from aime_fast.training import trainer as module
from aime_fast.training.checkpoint.checkpoint import Checkpoints
from aime_fast.training.checkpoint.loading import load_model
from aime_fast.training.run.folder import prepare
from aime_fast.training.trainer import DMCVBTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The uninterrupted run that others are compared with."""
    return run(data, tmp_path_factory.mktemp("whole") / "run")


def run(data, out, until=None, **changes):
    trainer = DMCVBTrainer(**tiny_options(data, out, **changes))
    return trainer.fit(until)


def rows(folder, split):
    with open(folder / "metrics.jsonl") as lines:
        return [row for row in map(json.loads, lines) if row["split"] == split]


def contents(checkpoint):
    """Everything that a checkpoint holds except the clock."""
    progress = json.loads((checkpoint / "state.json").read_text())["progress"]
    return (
        load_file(checkpoint / "weights.safetensors"),
        load_file(checkpoint / "rank-0-of-1.safetensors"),
        {k: v for k, v in progress.items() if k != "seconds"},
    )


def assert_same(one, two, where=""):
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        # Bit for bit; NaN marks values that are not known yet.
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    else:
        assert one == two, where


def test_a_run_leaves_metrics_pictures_and_checkpoints(whole):
    assert (whole.steps, whole.epochs, whole.skipped, whole.signal) == (7, 7 / 3, 0, 0)
    assert (whole.folder / "config.yaml").is_file()
    assert {path.name for path in (whole.folder / "figures").iterdir()} == {f"step-{s:08d}.png" for s in (3, 6, 7)}
    assert whole.checkpoint.name == "step-00000007"
    train, val = rows(whole.folder, "train"), rows(whole.folder, "val")
    assert [row["step"] for row in train] == [2, 3, 4, 6, 7]
    assert [row["step"] for row in val] == [3, 6, 7]
    assert max(row["psnr"] for row in val) == whole.best_psnr
    assert [row["beta"] for row in train] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 5 / 6, 1.0])
    assert all(math.isfinite(value) for row in train + val for key, value in row.items() if key != "split")
    assert {"recon_loss", "kl_z", "perplexity", "grad_norm", "rgb_cosine_elbo_perceiver", "lr"} <= train[0].keys()


@pytest.mark.parametrize("pause", range(1, 7))
def test_a_resumed_run_is_the_same_run(data, whole, tmp_path, pause):
    first = run(data, tmp_path / "run", until=pause)
    assert first.checkpoint.name == f"step-{pause:08d}"
    torch.rand(5)  # whatever else the process did
    second = run(data, tmp_path / "run", resume="auto")
    assert_same(contents(whole.checkpoint), contents(second.checkpoint))
    timing = ("time", "frames_per_second", "data_wait", "step_seconds", "memory_gb")
    for split in ("train", "val"):
        resumed = {row["step"]: row for row in rows(second.folder, split)}
        for row in rows(whole.folder, split):
            # An interval of logging that was cut in two has other means.
            if row["step"] > pause + 1:
                same = {name: value for name, value in row.items() if name not in timing}
                assert {name: resumed[row["step"]][name] for name in same} == same


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what DeepSpeed imports
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_resumed_run_is_the_same_run_under_zero(data, tmp_path, stage):
    found = []
    for out, pauses in (("whole", [None]), ("parts", [4, None])):
        for until in pauses:
            options = tiny_options(data, tmp_path / out, ds_config=f"zero{stage}", resume="auto")
            trainer = DMCVBTrainer(**options)
            try:
                summary = trainer.fit(until)
            finally:
                trainer.close()
        found.append(contents(summary.checkpoint))
    assert_same(*found)


def test_a_run_can_be_paused_and_continued_in_one_process(data, whole, tmp_path):
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run"))
    trainer.fit(until=2)
    assert_same(contents(whole.checkpoint), contents(trainer.fit().checkpoint))


def test_an_unknown_kernel_mode_is_a_user_error(data, tmp_path, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", "cuda")
    with pytest.raises(UserError, match="AIME_KERNELS is 'cuda'; set it to reference, triton or auto"):
        DMCVBTrainer(**tiny_options(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_resumes_to_nothing(data, whole):
    again = run(data, whole.folder, resume=str(whole.folder))
    assert (again.steps, again.checkpoint, again.best_psnr) == (7, whole.checkpoint, whole.best_psnr)


def test_a_run_beyond_a_lowered_limit_stops_at_once(data, tmp_path, capsys):
    run(data, tmp_path / "run", until=5)
    summary = run(data, tmp_path / "run", resume="auto", steps=3, override=True)
    assert summary.steps == 5
    assert "the run is at step 5 already: no step is left" in capsys.readouterr().err
    assert run(data, tmp_path / "run", resume="auto", until=4).steps == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_run(data, whole, tmp_path, monkeypatch, number):
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run"))
    set_lr = trainer.engine.set_lr

    def kill_at_five(lr):
        set_lr(lr)
        if trainer.progress.step == 4:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(trainer.engine, "set_lr", kill_at_five)
    summary = trainer.fit()
    assert (summary.steps, summary.signal) == (5, number)
    assert_same(contents(whole.checkpoint), contents(run(data, tmp_path / "run", resume="auto").checkpoint))


def test_the_best_model_of_a_run_is_loaded(whole, tmp_path):
    model = load_model(whole.folder)
    best = min(
        (row for row in rows(whole.folder, "val") if row["psnr"] == whole.best_psnr), key=lambda row: row["step"]
    )
    weights = load_file(whole.folder / "checkpoints" / f"step-{best['step']:08d}" / "weights.safetensors")
    assert not model.training
    assert_same(dict(model.state_dict()), weights)
    with pytest.raises(UserError, match="no checkpoint there"):
        load_model(tmp_path)


def test_a_model_with_sizes_this_version_does_not_know_is_refused(whole, tmp_path):
    folder = shutil.copytree(whole.checkpoint, tmp_path / whole.checkpoint.name)
    known, manifest = (json.loads((folder / name).read_text()) for name in ("state.json", "manifest.json"))
    known["config"]["model"]["wings"] = 2
    (folder / "state.json").write_text(json.dumps(known))
    manifest["files"]["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"this program's model has no wings; use the version that wrote it"):
        load_model(folder)


def test_time_ends_a_run_and_shapes_its_learning_rate(data, tmp_path):
    summary = run(data, tmp_path / "run", steps=None, minutes=1.5 / 60, optim={"warmup_steps": 0})
    assert summary.steps >= 1
    assert summary.seconds >= 1.5
    lr = [row["lr"] for row in rows(summary.folder, "train")]
    assert lr == sorted(lr, reverse=True)
    assert rows(summary.folder, "val")[-1]["step"] == summary.steps


def test_steps_with_a_non_finite_gradient_are_skipped_then_end_the_run(data, tmp_path, monkeypatch):
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run", optim={"max_skipped_steps": 3, "warmup_steps": 0}))
    before = {name: tensor.clone() for name, tensor in trainer.engine.module.state_dict().items()}
    compute = trainer.aggregator.compute_losses

    def broken(outputs, **options):
        losses, tasks = compute(outputs, **options)
        losses["total_elbo"] = losses["total_elbo"] * math.nan
        return losses, [losses["total_elbo"], *tasks[1:]]

    monkeypatch.setattr(trainer.aggregator, "compute_losses", broken)
    with pytest.raises(UserError, match=r"3 steps in a row .*total_elbo.*lower optim\.lr"):
        trainer.fit()
    assert trainer.progress.skipped == 3
    assert_same(before, dict(trainer.engine.module.state_dict()))


def test_a_full_disk_on_the_way_is_reported_and_the_run_continues(data, whole, tmp_path, monkeypatch, capsys):
    publish, failed = Checkpoints._publish, []

    def full_at_first(self, draft, name, checksums, best):
        if not failed:
            failed.append(name)
            raise OSError(28, "No space left on device")
        publish(self, draft, name, checksums, best)

    monkeypatch.setattr(Checkpoints, "_publish", full_at_first)
    summary = run(data, tmp_path / "run", checkpoint_every=2)
    assert_same(contents(whole.checkpoint), contents(summary.checkpoint))
    assert failed == ["step-00000002"]
    assert "No space left on device" in capsys.readouterr().err


def test_a_full_disk_at_the_end_is_an_error(data, tmp_path, monkeypatch):
    def full(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_publish", full)
    with pytest.raises(UserError, match=r"no checkpoint could be written.*No space left"):
        run(data, tmp_path / "run", until=2)
    assert not (tmp_path / "run" / "lock").exists()


def test_two_runs_do_not_write_to_one_folder(data, tmp_path):
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run"))
    lock = prepare(trainer.folder, trainer.config, print)
    with pytest.raises(UserError, match="is in use by process"):
        trainer.fit()
    lock.release()
    assert trainer.fit(until=1).steps == 1


def test_changed_settings_are_refused_or_reported(data, tmp_path, capsys):
    run(data, tmp_path / "run", until=2)
    changed = {"resume": "auto", "steps": 3, "optim": {"clip": 1.0}}
    with pytest.raises(UserError, match=r"other settings: optim\.clip 5\.0 -> 1\.0, steps 7 -> 3; .*--override"):
        run(data, tmp_path / "run", **changed)
    assert run(data, tmp_path / "run", override=True, **changed).steps == 3
    assert "settings changed since the checkpoint: optim.clip 5.0 -> 1.0, steps 7 -> 3" in capsys.readouterr().err


def test_an_existing_run_is_not_written_over(data, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}
    with pytest.raises(UserError, match="already holds a run; continue it with --resume"):
        run(data, whole.folder)
    assert before == {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}


def test_a_checkpoint_of_another_model_is_refused(data, whole, tmp_path):
    with pytest.raises(UserError, match=r"other settings: model.latent_dim 16 -> 12"):
        run(data, tmp_path / "run", resume=str(whole.folder), model={"latent_dim": 12})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "/nowhere"}, "/nowhere"),
        ({"model": {"action_dim": 9}}, rf"action_dim is 9, but .* has {ACTIONS};"),
        ({"loader": {"sequence_length": 13}}, "13 frames"),
        ({"resume": "auto", "out": None}, "give the run's folder with --out"),
        ({"resume": "/nowhere"}, "no checkpoint there"),
        ({"preset": "huge"}, "preset must be one of"),
        ({"optim": {"speed": 1}}, r"unknown option 'optim.speed'"),
        ({"steps": 0}, "steps"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(data, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        DMCVBTrainer(**(tiny_options(data, tmp_path / "run") | changes)).fit()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_auto_starts_from_nothing_where_there_is_no_checkpoint(data, tmp_path):
    assert run(data, tmp_path / "run", until=1, resume="auto").steps == 1


def test_figures_every_draws_between_validations(data, tmp_path):
    summary = run(data, tmp_path / "run", until=2, logging={"figures_every": 2, "tracker": "none"})
    assert [path.name for path in (summary.folder / "figures").iterdir()] == ["step-00000002.png"]


def test_a_run_without_an_end_gets_one(data):
    assert module.configured(None, {"preset": "debug"}).epochs is not None
