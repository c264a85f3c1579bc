"""Checkpoints appear whole or not at all, are verified, and are refused by another model."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aime_fast.config import preset_config
from aime_fast.errors import UserError
from aime_fast.training import checkpoint as module
from aime_fast.training import engine
from aime_fast.training.checkpoint import Checkpoints, changes, checkpoint_folders, fault, find, pointed
from aime_fast.training.peers import Peers
from aime_fast.training.state import Progress, RunState


class Keeper:
    """Something with a state: stands for an optimiser or a balancer."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class Engine(Keeper):
    """An engine's state and its module's weights, nothing else."""

    whole, weights, load_weights = engine.Engine.whole, engine.Engine.weights, engine.Engine.load_weights

    def __init__(self, value, module):
        super().__init__(value)
        self.module = module


class Tied(nn.Module):
    """Weights that share memory, a transposed buffer, an integer and a bool buffer."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a = nn.Linear(3, 3, bias=False)
        self.a.weight.data = torch.randn(3, 3, generator=generator)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("turned", torch.randn(4, 2, generator=generator).t())
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("flags", torch.tensor([True, False]))


def run_state(seed=1, step=0, config=None):
    kept = Engine(torch.full((2,), float(seed)), Tied(seed))
    return RunState(config or preset_config("debug"), kept, Keeper(seed), Progress(step=step))


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path, Peers(), keep=2)


def test_everything_comes_back(checkpoints):
    saved = run_state(seed=1, step=7)
    saved.progress.best_psnr = 27.5
    torch.manual_seed(3)
    path = checkpoints.save(saved)
    expected = torch.rand(2)

    other = run_state(seed=2)
    checkpoints.load(path, other)
    for name, tensor in saved.engine.module.state_dict().items():
        assert torch.equal(other.engine.module.state_dict()[name], tensor), name
    assert torch.equal(other.engine.value, saved.engine.value)
    assert other.rgb.value == 1
    assert other.progress == saved.progress
    assert torch.equal(torch.rand(2), expected)


def test_newest_and_best_stay(checkpoints, tmp_path):
    for step in range(1, 6):
        checkpoints.save(run_state(step=step), best=step == 2)
    assert [path.name[-1] for path in checkpoint_folders(tmp_path)] == ["2", "4", "5"]
    assert pointed(tmp_path, "latest") == "step-00000005"
    assert pointed(tmp_path, "best") == "step-00000002"
    assert find(tmp_path) == tmp_path / "step-00000005"


def test_the_same_step_can_be_saved_again(checkpoints, tmp_path):
    checkpoints.save(run_state(seed=1, step=3))
    path = checkpoints.save(run_state(seed=2, step=3))
    assert fault(path) is None
    state = run_state()
    checkpoints.load(path, state)
    assert state.rgb.value == 2
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("stage", ["fsync", "rename"])
def test_a_save_that_fails_leaves_the_previous_one(checkpoints, tmp_path, monkeypatch, stage):
    good = checkpoints.save(run_state(step=1))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    if stage == "fsync":
        monkeypatch.setattr(module.os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match=r"No space left.*previous one is intact"):
        checkpoints.save(run_state(step=2))
    monkeypatch.undo()
    assert find(tmp_path) == good
    assert pointed(tmp_path, "latest") == "step-00000001"
    checkpoints.save(run_state(step=2))
    assert find(tmp_path).name == "step-00000002"


def test_a_half_written_folder_is_no_checkpoint(checkpoints, tmp_path):
    good = checkpoints.save(run_state(step=1))
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "step-00000009" / "weights.safetensors").write_bytes(b"half")
    assert find(tmp_path) == good


@pytest.mark.parametrize("file", ["weights.safetensors", "state.json", "rank-0-of-1.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_newest_falls_back_to_the_previous(checkpoints, tmp_path, file, damage):
    good = checkpoints.save(run_state(step=1))
    path = checkpoints.save(run_state(step=2)) / file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 255
        path.write_bytes(content if damage == "flip" else content[:-5])
    notes = []
    assert find(tmp_path, notes.append) == good
    assert (len(notes) == 1 and "step-00000002 is damaged" in notes[0]) or (file, damage) == ("manifest.json", "gone")


def test_asking_for_a_damaged_one_is_an_error(checkpoints, tmp_path):
    path = checkpoints.save(run_state(step=1))
    (path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json does not match"):
        find(path)
    with pytest.raises(UserError, match="every checkpoint"):
        find(tmp_path)


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert find(tmp_path) is None
    assert find(tmp_path / "missing") is None


def test_another_model_is_refused_by_name_before_anything_changes(checkpoints):
    path = checkpoints.save(run_state(step=1))
    state = run_state(seed=2, config=preset_config("small"))
    with pytest.raises(UserError, match=r"another model:.*hidden_dim 64 -> 256"):
        checkpoints.load(path, state)
    assert state.rgb.value == 2


@pytest.mark.parametrize("change", ["shape", "missing", "more"])
def test_weights_of_another_version_are_refused_by_name_before_anything_changes(checkpoints, change):
    """The same sizes in the configuration, another architecture behind them."""
    path = checkpoints.save(run_state(step=1))
    state = run_state(seed=2)
    module = state.engine.module
    if change == "shape":
        module.turned = torch.zeros(3, 4)
    elif change == "missing":
        module.extra = nn.Linear(1, 1)
    else:
        del module.turned
    told = {
        "shape": r"turned is \[2, 4\] there and \[3, 4\] in this program",
        "missing": r"extra\.bias is missing there and \[1\] in this program",
        "more": r"turned is \[2, 4\] there and missing in this program",
    }
    with pytest.raises(UserError, match=rf"another model: {told[change]}; use the version that wrote it \("):
        checkpoints.load(path, state)
    assert state.rgb.value == 2


def test_another_world_size_is_refused(checkpoints, tmp_path):
    path = checkpoints.save(run_state(step=1))
    elsewhere = Checkpoints(tmp_path, Peers())
    elsewhere.peers = SimpleNamespace(rank=0, world_size=2)
    with pytest.raises(UserError, match="written by 1 process"):
        elsewhere.load(path, run_state())


def test_a_newer_format_is_refused(checkpoints):
    path = checkpoints.save(run_state(step=1))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    assert "newer" in fault(path)


def test_changes_are_named():
    old = {"a": 1, "b": {"c": 2, "d": 3}}
    assert changes(old, {"a": 1, "b": {"c": 5, "d": 3}}) == "b.c 2 -> 5"
    assert changes(old, old) == ""
