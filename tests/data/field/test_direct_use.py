"""What training and Python say of recordings that are used without packing, and of frames that are handed over."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from field_case import run
from made_arrays import columns, hdf5, noise, pointer

from aime_fast import DMCVBDataset, DPGMMVariationalRecurrentAutoencoder
from aime_fast.data.packing.pack import pack
from aime_fast.doctor.checks import run_check
from aime_fast.doctor.graphics import GRAPHICS
from aime_fast.errors import UserError
from aime_fast.model.frame_range import wrong_range

TRAIN = ("train", "--preset", "debug", "--steps", "1", "--loader.sequence-length", "4", "--loader.batch-size", "2")


def one_episode(folder):
    frames, actions = noise()
    return hdf5(folder / "own.h5", observations=frames, actions=actions, episode_ends=[16])


@pytest.mark.parametrize("packed", [False, True])
def test_a_lone_episode_trains_without_validation_and_says_so(tmp_path, packed):
    path = one_episode(tmp_path)
    path = pack(path, tmp_path / "shards") if packed else path
    came = run(*TRAIN, "--data", str(path), "--out", str(tmp_path / "run"))
    assert came.code == 0 and not came.traceback
    assert re.search("no .*held.out.*: training runs without validation", came.said)
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    more = ["2" if word == "1" else word for word in TRAIN]
    again = run(*more, "--data", str(path), "--out", str(tmp_path / "run"), "--resume", "auto", "--override")
    assert again.code == 0, again


@pytest.mark.parametrize("size", [(84, 84), (48, 80)])
def test_direct_use_says_what_resizing_does(tmp_path, size):
    path = columns(tmp_path, lambda _: noise(size=size)[0])
    note = f"frames of {size[0]}x{size[1]} were resized to 64x64 by averaging areas"
    assert any(line.startswith(note) for line in DMCVBDataset(path, 4).notes)
    came = run(*TRAIN, "--data", str(path), "--out", str(tmp_path / "run"))
    assert came.code == 0 and note in came.said


def test_a_pointer_in_place_of_a_shard_is_named(tmp_path):
    shards = pack(one_episode(tmp_path), tmp_path / "shards")
    for name in ("shard-000000.tar", "shard-000000.idx", "manifest.json"):
        whole = (shards / name).read_bytes()
        pointer(shards / name)
        with pytest.raises(UserError, match=f"{name}: a Git LFS pointer, not the data"):
            DMCVBDataset(shards, 4)
        (shards / name).write_bytes(whole)
    assert len(DMCVBDataset(shards, 4)) == 13


@pytest.fixture(scope="module")
def model():
    sizes = dict(latent_dim=12, hidden_dim=16, action_dim=2, context_dim=16, max_components=4)
    return DPGMMVariationalRecurrentAutoencoder(**sizes).eval()


def frames_of(levels):
    return torch.from_numpy(levels).movedim(-1, -3)[None]


RIGHT = {
    "bytes": lambda levels: levels,
    "-1 to 1": lambda levels: levels.float() * (2 / 255) - 1,
    "-1 to 1, divided": lambda levels: levels.float() / 127.5 - 1,
    "bright": lambda levels: (levels // 2 + 128).float() * (2 / 255) - 1,
    "white": lambda levels: torch.ones_like(levels, dtype=torch.float32),
    "predicted": lambda levels: levels.float() * (2.3 / 255) - 1.15,
}
WRONG = {
    "0 to 255": lambda levels: levels.float(),
    "0 to 1": lambda levels: levels.float() / 255,
    "divided twice": lambda levels: levels.float() / 255**2,
    "standardised": lambda levels: (levels.float() - 127) / 50,
    "double": lambda levels: levels.double() / 255,
    "half": lambda levels: levels.half(),
    "not finite": lambda levels: levels.float() * float("nan"),
}


@pytest.mark.parametrize("way", ["forward", "observe", "filter"])
@pytest.mark.parametrize("kind", [*RIGHT, *WRONG])
def test_frames_of_another_range_are_refused(model, kind, way):
    levels = frames_of(noise(3)[0])
    frames = (RIGHT | WRONG)[kind](levels)
    frames = frames.float() if frames.dtype in (torch.double, torch.half) else frames
    actions = torch.zeros(1, 3, 2)
    calls = {
        "forward": lambda: model(frames, actions),
        "observe": lambda: model.observe(frames, actions),
        "filter": lambda: model.filter(model.initial_state(1), frames[:, 0]),
    }
    if kind in RIGHT:
        calls[way]()
    else:
        with pytest.raises(UserError, match=r"the model reads uint8, or floats in \[-1, 1\]"):
            calls[way]()


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_range_is_told_in_other_types(kind):
    assert wrong_range(WRONG[kind](frames_of(noise(3)[0])))


def test_what_the_data_set_gives_is_right(tmp_path):
    frames = np.maximum(noise()[0], 128)  # no dark pixel, so that the range alone would not tell
    path = hdf5(tmp_path / "own.h5", observations=frames, actions=noise()[1])
    item = DMCVBDataset(path, 7)[0]["observations"]
    assert item.min() > 0 and wrong_range(item) == "" and wrong_range(item * 0.5 + 0.5) != ""


@pytest.mark.parametrize("device", ["7000", "gpu", "-1"])
def test_an_egl_device_that_does_not_exist_is_named(device):
    egl = replace(GRAPHICS[0], environment={"MUJOCO_GL": "egl"})
    if run_check(egl).status != "ok":
        pytest.skip("EGL does not render here")
    result = run_check(replace(egl, environment={**egl.environment, "MUJOCO_EGL_DEVICE_ID": device}))
    assert result.status == "warning" and f"MUJOCO_EGL_DEVICE_ID={device} names no device" in result.found
    assert result.fix == "unset MUJOCO_EGL_DEVICE_ID"


def test_packing_a_lone_episode_says_that_nothing_is_held_out(tmp_path):
    came = run("pack", str(one_episode(tmp_path)), "--out", str(tmp_path / "shards"))
    assert came.code == 0 and "no episode is held out, so a run has no validation" in came.said


def test_a_plain_video_is_told_what_it_lacks(tmp_path):
    path = tmp_path / "walk.MP4"
    path.write_bytes(bytes(100))
    came = run("pack", str(path), "--out", str(tmp_path / "shards"))
    assert (
        came.code == 2 and f"{path}: a video holds no actions; write its frames and the action after each" in came.said
    )
