"""Every layout that `pack` reads gives back the episodes that were written in it, bit for bit and aligned."""

import json

import h5py
import numpy as np
import pytest
import written_layouts as layouts

from aime_fast.commands.main import main
from aime_fast.data.packing.pack import pack
from aime_fast.data.sources import open_source, source
from aime_fast.data.store import open_store
from aime_fast.errors import UserError

LAYOUTS = {
    layouts.hdf5_file: ("HDF5", []),
    layouts.hdf5_folder: ("HDF5", []),
    layouts.torch_file: ("torch", []),
    layouts.dreamer_folder: ("npz", ["led to frame t: shifted by one"]),
    layouts.v_d4rl_file: ("HDF5", ["led to frame t: shifted by one"]),
    layouts.rlds_folder: ("RLDS (TFRecord)", ["the last frame of each episode"]),
    layouts.rlds_gzip: ("RLDS (TFRecord)", ["the last frame of each episode"]),
    layouts.rlds_zlib: ("RLDS (TFRecord)", ["the last frame of each episode"]),
    layouts.sequence_example_file: ("RLDS (TFRecord)", ["the last frame of each episode"]),
    layouts.dmc_vb_file: ("RLDS (TFRecord)", ["the last frame of each episode", "reward[t] was earned on the way"]),
    layouts.minari_folder: ("Minari", ["the last frame of each episode"]),
    layouts.lerobot_folder: ("LeRobot v3", ["decoded from video (h264)"]),
    layouts.lerobot_images: ("LeRobot v3", []),
}


@pytest.fixture(scope="module")
def episodes():
    return layouts.sample_episodes()


def assert_holds(found, episodes):
    for episode, (observations, actions, rewards) in zip(found, episodes, strict=True):
        np.testing.assert_array_equal(episode.observations, observations[: len(actions)])
        np.testing.assert_array_equal(episode.actions, actions)
        np.testing.assert_array_equal(episode.rewards, rewards)
        assert episode.truncated[-1] and not episode.terminated.any() and not episode.truncated[:-1].any()


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_layout_is_read(tmp_path, episodes, layout, capsys):
    (tmp_path / "source").mkdir()
    path = layout(tmp_path / "source", episodes)
    found = open_source(path)
    name, notes = LAYOUTS[layout]
    assert found.format == name
    assert len(found.notes) == len(notes) and all(map(str.__contains__, found.notes, notes)), found.notes
    assert found.lengths == layouts.LENGTHS
    assert_holds(found.read(), episodes)
    assert_holds([found.episode(number) for number in (2, 0, 1)], [episodes[number] for number in (2, 0, 1)])

    # And through the command, from the folder and out of the shards, with what was changed said and kept.
    assert main(["pack", str(path), "--out", str(tmp_path / "out"), "--val-episodes", "1", "--workers", "1"]) == 0
    said = capsys.readouterr().err
    assert f"{name}, 3 episodes" in said and all(note in said for note in found.notes)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["notes"] == list(found.notes)
    store = open_store(tmp_path / "out", "all")
    for number, (observations, actions, rewards) in enumerate(episodes):
        batch = store.gather(np.array([[number, 0]]), len(actions))
        np.testing.assert_array_equal(batch.observations[0].numpy(), observations[:-1])
        np.testing.assert_array_equal(batch.actions[0].numpy(), actions)
        np.testing.assert_array_equal(batch.rewards[0].numpy(), rewards)


def test_a_recording_in_any_layout_trains_without_packing(tmp_path, episodes):
    assert open_store(layouts.dreamer_folder(tmp_path, episodes), "train").lengths == layouts.LENGTHS[:2]


def test_an_end_of_the_task_is_told_from_a_cut(tmp_path, episodes):
    """Terminal by `is_terminal`, and in older files by a discount of zero."""
    o, a, r = episodes[2]
    n = len(o)
    columns = dict(image=o, action=np.concatenate([0 * a[:1], a]), reward=np.concatenate([0 * r[:1], r]))
    last = np.arange(n) == n - 1
    np.savez(tmp_path / "a.npz", **columns, is_first=np.arange(n) == 0, is_last=last, is_terminal=last)
    np.savez(tmp_path / "b.npz", **columns, discount=(~last).astype(np.float32))
    np.savez(tmp_path / "c.npz", **columns, discount=np.ones(n))
    ends = [(e.terminated[-1], e.truncated[-1]) for e in open_source(tmp_path).read()]
    assert ends == [(True, False), (True, False), (False, True)]

    features = layouts.rlds_features(o, a, r)
    features["steps/is_terminal"] = features["steps/is_last"]
    path = layouts.write_tfrecord(tmp_path / "r.tfrecord", [features])
    (episode,) = open_source(path).read()
    assert episode.terminated[-1] and not episode.truncated[-1]


def test_time_outs_end_episodes(tmp_path):
    """D4RL marks the end of the task and the end of time in two columns."""
    data = dict(observations=np.zeros((9, 64, 64, 3), np.uint8), actions=np.zeros((9, 1), np.float32))
    data |= dict(rewards=np.zeros(9), terminals=np.arange(9) == 3, timeouts=np.arange(9) == 6)
    with h5py.File(tmp_path / "r.h5", "w") as file:
        for name, values in data.items():
            file[name] = values
    found = list(open_source(tmp_path / "r.h5").read())
    assert [len(episode) for episode in found] == [4, 3, 2]
    assert [bool(episode.terminated[-1]) for episode in found] == [True, False, False]


def test_an_rlds_episode_without_a_last_observation_keeps_every_frame(tmp_path, episodes):
    o, a, r = episodes[2]
    features = layouts.rlds_features(o[:-1], a[:-1], r[:-1])
    features["steps/is_last"] = ([0] * len(a), "int")
    features["steps/action"] = (a.ravel().tolist(), "float")
    features["steps/reward"] = (r.tolist(), "float")
    found = open_source(layouts.write_tfrecord(tmp_path / "r.tfrecord", [features]))
    assert_holds(found.read(), [(o, a, r)])
    assert found.notes == ()


@pytest.mark.parametrize("size", [(128, 128), (96, 80), (32, 48)])
def test_other_sizes_are_averaged_over_areas(tmp_path, size):
    """128 is an exact ratio, the others cut pixels, and the last enlarges."""
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["pixels"], file["action"], file["reward"] = images, np.zeros((3, 2), np.float32), np.zeros(3)
        file["episode_ends"] = [3]
    found = open_source(tmp_path / "r.h5")
    stretched = "" if size[0] == size[1] else "; they are not square, so shapes are stretched"
    assert found.notes == (f"frames of {size[0]}x{size[1]} were resized to 64x64 by averaging areas{stretched}",)
    (episode,) = found.read()

    # Every pixel repeated 64 times: then each of the 64 is the mean of a whole number of them.
    height, width = size
    rows = images[0].repeat(64, 0).reshape(64, height, width, 3).mean(1)
    expected = rows.repeat(64, 1).reshape(64, 64, width, 3).mean(2)
    assert np.abs(episode.observations[0] - expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("layout", [layouts.rlds_folder, layouts.minari_folder, layouts.lerobot_folder])
def test_a_missing_library_is_named_with_its_install_line(tmp_path, episodes, layout, monkeypatch):
    path = layout(tmp_path, episodes)
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'aime-fast\[(tfrecord|minari|lerobot)\]'"):
        open_source(path)


def test_minari_jpeg_is_said_to_be_lossy(tmp_path, episodes):
    found = open_source(layouts.minari_folder(tmp_path, episodes, jpeg=True))
    assert found.notes[-1] == "Minari stored the frames as JPEG, which is lossy"
    assert [len(episode) for episode in found.read()] == layouts.LENGTHS


def test_one_of_several_cameras(tmp_path, episodes):
    def observe(value):
        return {"front": value, "back": value if hasattr(value, "low") else [255 - frame for frame in value]}

    path = layouts.minari_folder(tmp_path, episodes, observe=observe)
    with pytest.raises(UserError, match="several pictures a step; choose with `aime-fast pack --camera`: back, front"):
        open_source(path)
    with pytest.raises(UserError, match="no pictures side; choose with `aime-fast pack --camera`: back, front"):
        open_source(path, camera="side")
    assert_holds(open_source(path, camera="front").read(), episodes)
    np.testing.assert_array_equal(open_source(path, camera="back").episode(0).observations[0], 255 - episodes[0][0][0])


def test_a_format_can_be_named(tmp_path, episodes):
    layouts.dreamer_folder(tmp_path, episodes)
    layouts.hdf5_folder(tmp_path, episodes)
    with pytest.raises(UserError, match=r"several kinds \(hdf5, npz\); choose one with --format"):
        open_source(tmp_path)
    assert_holds(open_source(tmp_path, format="npz").read(), episodes)
    assert_holds(open_source(tmp_path, format="hdf5").read(), episodes)
    with pytest.raises(UserError, match="holds no recording of format rlds"):
        open_source(tmp_path, format="rlds")
    with pytest.raises(UserError, match="unknown --format 'csv'; choose from lerobot, minari, shards, hdf5"):
        open_source(tmp_path, format="csv")


def test_the_content_decides_and_not_the_name(tmp_path, episodes):
    path = layouts.hdf5_file(tmp_path, episodes).rename(tmp_path / "no_ending")
    assert open_source(path).format == "HDF5"
    path = layouts.torch_file(tmp_path, episodes).rename(tmp_path / "archive.zip")
    assert open_source(path).format == "torch"


def test_shards_are_packed_again(tmp_path, episodes):
    first = pack(layouts.dreamer_folder(tmp_path, episodes), tmp_path / "first")
    found = open_source(first)
    assert found.format == "shards"
    assert_holds(found.read(), episodes)
