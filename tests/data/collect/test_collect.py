import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from aime_fast.commands.main import main
from aime_fast.data.collect import collect as collect_module
from aime_fast.data.collect.collect import collect
from aime_fast.data.collect.simulation import unknown_environment
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.data.store import open_store
from aime_fast.doctor import Result, choose_graphics
from aime_fast.doctor import graphics as graphics_module
from aime_fast.doctor.graphics import INSTALL
from aime_fast.errors import UserError

LENGTH = 20
CHOICES = dict(episodes=3, length=LENGTH, policy="made_policies:noise", camera=1, seed=5, val_episodes=1)


@pytest.fixture(scope="module")
def graphics():
    """The value of MUJOCO_GL that works here; without one the tests say what the doctor says."""
    if find_spec("dm_control") is None:
        pytest.skip(INSTALL)
    working, results = choose_graphics()
    if working is None:
        pytest.skip(results[0].line)
    return working


@pytest.fixture
def recording(graphics, monkeypatch):
    """`collect`, spared from looking for a back-end each time."""
    monkeypatch.setattr(collect_module, "choose_graphics", lambda: (graphics, []))
    return collect


@pytest.fixture(scope="module")
def one(graphics, tmp_path_factory):
    """Three short episodes, recorded by one process, never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_module, "choose_graphics", lambda: (graphics, []))
        return collect("cartpole_swingup", tmp_path_factory.mktemp("collect") / "one", **CHOICES, processes=1)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_processes_record_the_same_bytes(recording, one, tmp_path):
    two = recording("cartpole_swingup", tmp_path / "two", **CHOICES, processes=2)
    assert files(two) == files(one)
    assert os.listdir(tmp_path) == ["two"]


def test_an_interrupted_recording_goes_on_to_the_same_bytes(recording, one, tmp_path, monkeypatch, capfd):
    out = tmp_path / "out"
    monkeypatch.setenv("INTERRUPT_AT", str(LENGTH + 3))
    with pytest.raises(KeyboardInterrupt):
        recording("cartpole_swingup", out, **CHOICES, processes=1)
    assert "finished episodes are kept in" in capfd.readouterr().err
    kept = tmp_path / ".out.collecting" / "episode-000000.h5"
    assert [path.name for path in kept.parent.glob("episode-*")] == [kept.name]
    monkeypatch.delenv("INTERRUPT_AT")
    with pytest.raises(UserError, match=r"camera 1 instead of 0.*repeat its choices, or --force"):
        recording("cartpole_swingup", out, **{**CHOICES, "camera": 0}, processes=1)
    assert files(recording("cartpole_swingup", out, **CHOICES, processes=1)) == files(one)
    assert not kept.parent.exists()
    assert "1 of 3 episodes are there already" in capfd.readouterr().err


def test_the_frames_are_those_of_the_actions(one, graphics, tmp_path):
    """Simulated again by a program that knows dm_control, the seed and the actions alone."""
    batch = open_store(one, "all").gather(np.array([[0, 0], [1, 0], [2, 0]]), LENGTH)
    np.savez(tmp_path / "in.npz", actions=batch.actions.numpy(), action_repeat=2)
    script = Path(__file__).with_name("resimulate.py")
    environment = {**os.environ, "MUJOCO_GL": graphics, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, script, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    again = np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(batch.observations.reshape(-1, 64, 64, 3), again["frames"])
    np.testing.assert_array_equal(batch.rewards.reshape(-1), again["rewards"].astype(np.float32))
    assert batch.dones.numpy().nonzero()[1].tolist() == [LENGTH - 1] * 3
    assert len(np.unique(again["frames"].reshape(3, -1), axis=0)) == 3


def test_the_manifest_says_how_it_was_recorded(one, tmp_path):
    manifest = json.loads((one / "manifest.json").read_text())
    told = manifest["collection"]
    assert manifest["environment"] == told["environment"] == "cartpole_swingup"
    assert [entry["split"] for entry in manifest["episodes"]] == ["train", "train", "val"]
    assert {key: told[key] for key in ("policy", "seed", "action_repeat", "camera", "length")} == dict(
        policy="made_policies:noise", seed=5, action_repeat=2, camera=1, length=LENGTH
    )
    assert told["versions"].keys() == {"aime-fast", "dm_control", "mujoco", "numpy"}
    table = inspect(one, deep=True)
    assert f"mujoco {told['versions']['mujoco']}" in table
    assert "policy made_policies:noise, action repeat 2, camera 1, size 64, seed 5" in table
    packed = pack(one, tmp_path / "packed", codec="png")
    assert json.loads((packed / "manifest.json").read_text())["collection"] == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env", "cheeta_run"], "unknown environment 'cheeta_run'; did you mean cheetah_run"),
        (["--env", "cartpole_swingup", "--camera", "7"], "cartpole_swingup has 2 cameras; choose --camera 0 to 1"),
        (["--env", "cartpole_swingup", "--policy", "made_policies:stubborn"], "raised LookupError: no idea at made_"),
    ],
)
def test_mistakes_that_only_the_simulation_sees(recording, tmp_path, capfd, options, message):
    code = main(["collect", *options, "--out", str(tmp_path / "out"), "--processes", "1"])
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "clever"], "unknown policy 'clever'; choose one of ou, random, or name a module:function"),
        (["--episodes", "2", "--val-episodes", "2"], "leave nothing to train on"),
        (["--episodes", "0"], "must be an integer of at least 1"),
        (["--camera", "-1"], "camera is -1; it must be at least 0"),
        (["--seed", "-1"], "seed is -1; it must be at least 0"),
        (["--out", "."], "exists already; choose another folder, or --force to replace it"),
    ],
)
def test_mistakes_that_start_nothing(tmp_path, monkeypatch, capsys, options, message):
    (tmp_path / "thesis.tex").write_text("years")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collect_module, "choose_graphics", None)
    code = main(["collect", "--env", "cartpole_swingup", "--out", "new", *options])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_where_nothing_renders_the_error_names_the_package(tmp_path, monkeypatch, capsys):
    if find_spec("mujoco") is None:
        pytest.skip(INSTALL)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    code = main(["collect", "--env", "cartpole_swingup", "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: nothing renders here, MUJOCO_GL=glfw: ")
    assert "apt-get install libglfw3" in err
    assert os.listdir(tmp_path) == []


def test_a_folder_in_use_is_left_alone(recording, tmp_path, one):
    provenance = json.loads((one / "manifest.json").read_text())["collection"]
    with (
        collect_module._work_folder(tmp_path / "out", provenance, False),
        pytest.raises(UserError, match="another process is recording into it"),
        collect_module._work_folder(tmp_path / "out", provenance, True),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_process_that_is_killed_is_one_line(recording, tmp_path):
    with pytest.raises(UserError, match="a worker process was killed by SIGKILL; run the same command again"):
        recording("cartpole_swingup", tmp_path / "out", policy="made_policies:killed", episodes=1, processes=1)


def test_names_that_are_close():
    known = ["cheetah_run", "humanoid_run", "humanoid_walk", "ball_in_cup_catch"]
    assert unknown_environment("humanoid_wlak", known).endswith("did you mean humanoid_walk, humanoid_run?")
    assert unknown_environment("humanoid_fly", known).endswith("did you mean humanoid_walk, humanoid_run?")
    assert "known are, for instance, cheetah_run" in unknown_environment("zzz", known)


def test_the_first_back_end_that_works_is_taken(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    asked = []

    def answer(check):
        asked.append(check.name)
        return Result(check.name, "ok" if check.name == "OSMesa" else "warning", "", "")

    monkeypatch.setattr(graphics_module, "run_check", answer)
    assert choose_graphics()[0] == "osmesa"
    assert asked == ["EGL", "OSMesa"]
    monkeypatch.setenv("MUJOCO_GL", "EGL")
    assert choose_graphics()[0] is None
    assert asked[2:] == ["MUJOCO_GL=EGL"]
