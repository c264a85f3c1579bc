"""Checkpoints appear complete or not at all, are verified, and are refused by another model."""

import json
import os
import threading
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aime_fast.config import preset_config
from aime_fast.data.identity import DataIdentity
from aime_fast.errors import UserError
from aime_fast.training.checkpoint import files as module
from aime_fast.training.checkpoint import state as state_module
from aime_fast.training.checkpoint.checkpoint import Checkpoints
from aime_fast.training.checkpoint.finding import checkpoint_folders, fault, find, pointed
from aime_fast.training.checkpoint.state import Progress, RunState
from aime_fast.training.engines.engine import PlainEngine
from aime_fast.training.engines.host_group import HostGroup

FILES = ["weights.safetensors", "rank-0-of-1.safetensors", "state.json", "manifest.json"]


class Keeper:
    """Something with a state: stands for a balancer."""

    layout = SimpleNamespace(direction=None)

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": torch.tensor(self.value)}

    def load_state_dict(self, state):
        self.value = int(state["value"])


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
    config = config or preset_config("debug")
    engine = PlainEngine(Tied(seed), config)
    for parameter in engine.optimizer.param_groups[0]["params"]:
        engine.optimizer.state[parameter] = {"exp_avg": parameter.detach() * 2, "step": torch.tensor(float(step))}
    data = DataIdentity(None, "cheetah_run", 64, [-1.0], [1.0], "0123456789abcdef")
    return RunState(config, data, engine, Keeper(seed), Progress(step=step))


def save(checkpoints, state, best=False):
    """Save and wait: the checkpoint's folder."""
    checkpoints.save(state, best)
    checkpoints.finish()
    return checkpoints.newest


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, HostGroup(), keep=2)
    yield checkpoints
    checkpoints.close()


def test_everything_is_restored(checkpoints):
    saved = run_state(seed=1, step=7)
    saved.progress.best_psnr = 27.5
    torch.manual_seed(3)
    path = save(checkpoints, saved)
    expected = torch.rand(2)

    other = run_state(seed=2)
    checkpoints.load(path, other)
    for name, tensor in saved.engine.module.state_dict().items():
        assert torch.equal(other.engine.module.state_dict()[name], tensor), name
    moments = [list(state.engine.optimizer.state.values()) for state in (saved, other)]
    assert all(torch.equal(one[key], two[key]) for one, two in zip(*moments, strict=True) for key in one)
    assert other.balancer.value == 1
    assert other.progress == saved.progress
    assert torch.equal(torch.rand(2), expected)


def test_training_goes_on_while_a_checkpoint_is_written(checkpoints, tmp_path, monkeypatch):
    """What is written is the state at the time of `save`, however long the disk takes."""
    state, held, sync = run_state(seed=1, step=4), threading.Event(), os.fsync

    def slow(descriptor):
        assert held.wait(60)
        sync(descriptor)

    monkeypatch.setattr(module.os, "fsync", slow)
    checkpoints.save(state)
    before = {name: tensor.clone() for name, tensor in state.engine.module.state_dict().items()}
    with torch.no_grad():
        for tensor in state.engine.module.state_dict().values():
            tensor.zero_()
        state.engine.optimizer.state.clear()
        state.progress.step = 5
    assert find(tmp_path) is None
    assert checkpoints.take_failure() is None
    held.set()
    checkpoints.finish()
    other = run_state(seed=2)
    checkpoints.load(find(tmp_path), other)
    assert other.progress.step == 4
    assert other.engine.optimizer.state
    assert all(torch.equal(other.engine.module.state_dict()[name], tensor) for name, tensor in before.items())


def test_later_checkpoints_are_removed_after_resuming_from_an_earlier_one(checkpoints, tmp_path):
    """A run resumed from before its newest checkpoint: the first new one stays, the later old ones do not."""
    for step in (1, 5, 9):
        save(checkpoints, run_state(step=step))
    save(checkpoints, run_state(step=6))
    assert [path.name[-1] for path in checkpoint_folders(tmp_path)] == ["5", "6"]
    assert find(tmp_path).name == pointed(tmp_path, "latest") == "step-00000006"


def test_newest_and_best_stay(checkpoints, tmp_path):
    for step in range(1, 6):
        save(checkpoints, run_state(step=step), best=step == 2)
    assert [path.name[-1] for path in checkpoint_folders(tmp_path)] == ["2", "4", "5"]
    assert pointed(tmp_path, "latest") == "step-00000005"
    assert pointed(tmp_path, "best") == "step-00000002"
    assert find(tmp_path) == tmp_path / "step-00000005"


def test_the_same_step_can_be_saved_again(checkpoints, tmp_path):
    save(checkpoints, run_state(seed=1, step=3))
    path = save(checkpoints, run_state(seed=2, step=3))
    assert fault(path) is None
    state = run_state()
    checkpoints.load(path, state)
    assert state.balancer.value == 2
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_full_disk_before_the_first_checkpoint_promises_none(checkpoints, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    checkpoints.save(run_state(step=1))
    with pytest.raises(UserError, match=r"No space left.*there is none yet: free some space, then start again"):
        checkpoints.finish()


@pytest.mark.parametrize("stage", ["fsync", "rename"])
def test_a_full_disk_is_reported_and_loses_nothing(checkpoints, tmp_path, monkeypatch, stage):
    good = save(checkpoints, run_state(step=1))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    if stage == "fsync":
        monkeypatch.setattr(module.os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "rename", full)
    checkpoints.save(run_state(step=2))
    with pytest.raises(UserError, match=r"No space left.*previous one is intact"):
        checkpoints.finish()
    assert "No space left" in checkpoints.take_failure()
    assert checkpoints.take_failure() is None, "reported once"
    assert checkpoints.newest == good
    monkeypatch.undo()
    assert find(tmp_path) == good
    assert pointed(tmp_path, "latest") == "step-00000001"
    save(checkpoints, run_state(step=2))
    assert find(tmp_path).name == "step-00000002"
    assert not list(tmp_path.glob(".*"))


def test_a_half_written_folder_is_no_checkpoint(checkpoints, tmp_path):
    good = save(checkpoints, run_state(step=1))
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / "step-00000009" / "weights.safetensors").write_bytes(b"half")
    assert find(tmp_path) == good


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_newest_falls_back_to_the_previous(checkpoints, tmp_path, file, damage):
    good = save(checkpoints, run_state(step=1))
    path = save(checkpoints, run_state(step=2)) / file
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
    path = save(checkpoints, run_state(step=1))
    (path / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json does not match"):
        find(path)
    with pytest.raises(UserError, match="every checkpoint"):
        find(tmp_path)


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert find(tmp_path) is None
    assert find(tmp_path / "missing") is None


@pytest.mark.parametrize("change", ["shape", "missing", "more"])
def test_weights_of_another_version_are_refused_by_name_before_anything_changes(checkpoints, change):
    """The same sizes in the configuration, another architecture behind them."""
    path = save(checkpoints, run_state(step=1))
    state = run_state(seed=2)
    module = state.engine.module
    if change == "shape":
        module.turned = torch.zeros(3, 4)
    elif change == "missing":
        module.extra = nn.Linear(1, 1)
    else:
        del module.turned
    messages = {
        "shape": r"turned is \[2, 4\] there and \[3, 4\] in this program",
        "missing": r"extra\.bias is missing there and \[1\] in this program",
        "more": r"turned is \[2, 4\] there and missing in this program",
    }
    with pytest.raises(UserError, match=rf"another model: {messages[change]}; use the version that wrote it \("):
        checkpoints.load(path, state)
    assert state.balancer.value == 2


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"format": 2, "world_size": 1, "files": {}}, "written by aime-fast 0.1.0 (checkpoint format 2"),
        ({"format": 99, "version": "7.0"}, "written by aime-fast 7.0 (checkpoint format 99"),
    ],
)
def test_another_version_is_named_in_one_line(checkpoints, tmp_path, manifest, words):
    path = save(checkpoints, run_state(step=1))
    (path / "manifest.json").write_text(json.dumps(manifest))
    for where in (path, tmp_path):
        with pytest.raises(UserError) as caught:
            find(where)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_run_without_deepspeed_has_no_version_of_it(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(state_module, "version", missing)
    assert state_module.versions()["deepspeed"] is None
