"""An exported model is the run's model, in files that anything can read."""

import json

import pytest
import torch
from recording import ACTIONS, tiny_options, write_recording
from safetensors.torch import load_file, save_file

from aime_fast import DPGMMVariationalRecurrentAutoencoder as Model
from aime_fast.commands.main import main
from aime_fast.data.store import open_store
from aime_fast.errors import UserError
from aime_fast.training.checkpoint.loading import export, load_model
from aime_fast.training.trainer import DMCVBTrainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("export")
    options = tiny_options(write_recording(place / "recording.pt"), place / "run", steps=2)
    DMCVBTrainer(**options).fit()
    return place / "run"


def test_the_exported_model_is_the_runs_model(run, tmp_path, capsys):
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"exported to {tmp_path / 'out'}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.json"}
    ours, theirs = load_model(run), Model.from_pretrained(tmp_path / "out")
    assert not theirs.training
    assert theirs.config == ours.config
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    frames, actions = torch.zeros(1, 3, 3, 64, 64), torch.zeros(1, 3, ACTIONS)
    assert torch.equal(theirs.reconstruct(theirs(frames, actions)), ours.reconstruct(ours(frames, actions)))
    (tmp_path / "other").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("other", "out/model.safetensors", "out/config.json")}
    assert len(modes) == 1, "others may read what any new file lets them read"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"]["action_dim"] == ACTIONS


def test_nothing_is_written_over(run, tmp_path):
    with pytest.raises(UserError, match="exists; give a new folder"):
        export(run, tmp_path)
    with pytest.raises(UserError, match="no checkpoint there"):
        export(tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage", ["no config", "no weights", "torn weights", "another model", "unknown size", "negative size"]
)
def test_what_is_no_exported_model_is_refused(run, tmp_path, damage):
    folder = export(run, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "torn weights":
        (folder / "model.safetensors").write_bytes(b"torn")
    elif damage == "another model":
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name: tensor for name, tensor in weights.items() if name != "mean_frame"}, folder / "model.safetensors"
        )
    else:
        config["model"] |= {"wings": 2} if damage == "unknown size" else {"num_slots": -1}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"export|wings|num_slots must be at least 1") as caught:
        Model.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_without_held_out_episodes_what_is_kept_stays(run, tmp_path, monkeypatch, capsys):
    def none_held_out(path, split, **options):
        if split == "val":
            raise UserError("no val episodes")
        return open_store(path, split, **options)

    monkeypatch.setattr("aime_fast.refit.of_run.open_store", none_held_out)
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--refit", "--refit-steps", "2"]) == 0
    said = "".join(capsys.readouterr())
    assert "what is kept of older frames is not fitted, since held-out episodes must judge it: no val episodes" in said
    ours, theirs = load_model(run).state_dict(), load_model(tmp_path / "out").state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in ours.items() if name.startswith("decoder."))


def test_what_reads_h_learns_anew_on_the_way_out(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out), "--refit", "--refit-steps", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"exported to {out} after step ")
    ours, theirs = load_model(run).state_dict(), load_model(out).state_dict()
    changed = {name.split(".")[0] for name, x in ours.items() if not torch.equal(x, theirs[name])}
    assert changed - {"decoder"} == {"dynamics", "prior", "attention_prior"}
    assert main(["evaluate", str(out), "--context", "2", "--horizon", "2"]) == 0


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--refit-steps", "2"], "--refit-steps belongs to --refit, which is not given"),
        (["--data", "x"], "--data belongs to --refit"),
        (["--refit", "--data", "nowhere.h5"], "nowhere.h5"),
        (["--refit", "--refit-steps", "0"], "must be an integer of at least 1"),
    ],
)
def test_a_refit_that_cannot_be_is_refused_in_one_line(run, tmp_path, capsys, flags, said):
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *flags]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last and not (tmp_path / "out").exists()


def test_a_refit_asks_for_the_rewards_of_its_tasks(tmp_path, capsys):
    data = write_recording(tmp_path / "recording.pt")
    tasks = ["elbo", "perceiver", "predictive", "reward"]
    DMCVBTrainer(**tiny_options(data, tmp_path / "run", steps=1, tasks=tasks)).fit()
    content = torch.load(data)
    del content["rewards"]
    torch.save(content, tmp_path / "bare.pt")
    flags = ["--refit", "--data", str(tmp_path / "bare.pt")]
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out"), *flags]) == 2
    assert "no rewards, which the run's task 'reward' learns from" in capsys.readouterr().err
