"""Frames of every supported size pass through packing, every back-end and the data set, bit for bit."""

import json

import numpy as np
import pytest
import torch
import written_layouts as layouts
from made_recordings import columns, write_hdf5

from aime_fast.config import LoaderConfig
from aime_fast.data.backends import open_backend
from aime_fast.data.dataset import DMCVBDataset
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.data.sources import open_source
from aime_fast.data.store import open_store
from aime_fast.errors import UserError

SIZES = [16, 32, 48, 96, 128]
CONFIG = LoaderConfig(batch_size=3, sequence_length=6)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    made = {}
    for size in SIZES:
        data = columns([20, 17, 18], seed=size)
        data["observations"] = np.random.default_rng(size).integers(0, 256, (55, size, size, 3), np.uint8)
        made[size] = write_hdf5(folder / f"{size}.h5", data), data["observations"]
    return made


@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("size", SIZES)
def test_every_back_end_returns_the_frames(recordings, tmp_path, size, codec):
    path, frames = recordings[size]
    shards = pack(path, tmp_path / "shards", codec=codec, size=size, val_episodes=1, chunks_per_shard=2)
    assert json.loads((shards / "manifest.json").read_text())["image_size"] == size
    assert f"frames         {size}x{size}\n" in inspect(shards, deep=True)
    known = {frame.tobytes(): number for number, frame in enumerate(frames)}
    means = []
    for kind in ("memory", "resident", "dali", "dali-stream", "webdataset"):
        backend = open_backend(kind, shards, CONFIG, "train", 0)
        assert backend.image_size == size and backend.has_rewards
        batch = backend.batch(0)
        assert batch.observations.shape == (3, 6, size, size, 3)
        for window in batch.observations.numpy():
            first = known[window[0].tobytes()]
            assert (window == frames[first : first + 6]).all()
        means.append(backend.survey().mean_frame)
    assert all(mean.shape == (3, size, size) and torch.equal(mean, means[0]) for mean in means)
    item = DMCVBDataset(shards, 6)[5]["observations"]
    assert np.array_equal(((item + 1) * 127.5).round().byte().movedim(1, -1).numpy(), frames[5:11])
    piped = open_backend("webdataset", f"pipe:cat {shards}/{{}}", CONFIG, "val", 0)
    assert next(piped.evaluation_windows(6)).observations.shape[2:] == (size, size, 3)


def test_pack_resizes_when_asked_and_says_so(recordings, tmp_path):
    path, frames = recordings[128]
    lines = []
    out = pack(path, tmp_path / "small", size=32, report=lines.append)
    assert "frames of 128x128 were resized to 32x32 by averaging areas" in lines
    means = frames.reshape(55, 32, 4, 32, 4, 3).mean((2, 4))
    found = np.concatenate([episode.observations for episode in open_source(out).read()])
    assert np.abs(found - means).max() <= 0.5 + 1e-3
    # Shards keep their size when they are packed again, unless another one is asked for.
    again = pack(out, tmp_path / "again", codec="png")
    assert open_store(again, "all").image_size == 32
    assert open_store(pack(out, tmp_path / "large", size=64), "all").image_size == 64


def test_recordings_are_64_by_default(recordings):
    path, _ = recordings[96]
    assert open_backend("auto", path, CONFIG, "train", 0).image_size == 64
    assert DMCVBDataset(path, 6)[0]["observations"].shape == (6, 3, 64, 64)
    assert DMCVBDataset(path, 6, image_size=96)[0]["observations"].shape == (6, 3, 96, 96)


def test_shards_of_another_size_are_refused(recordings, tmp_path):
    shards = pack(recordings[32][0], tmp_path / "shards", size=32)
    with pytest.raises(UserError, match=r"frames are 32x32, not 64x64; pack it again with --size 64"):
        DMCVBDataset(shards, 6, image_size=64)


@pytest.mark.parametrize("size", [-16, 0, 8, 60, 100, 528])
def test_impossible_sizes_are_refused(recordings, tmp_path, size):
    with pytest.raises(UserError, match=f"image size is {size}; it must be a multiple of 16 up to 512"):
        pack(recordings[32][0], tmp_path / "shards", size=size)


def test_an_old_manifest_means_64(recording, tmp_path):
    shards = pack(recording, tmp_path / "shards")
    fields = json.loads((shards / "manifest.json").read_text())
    assert fields.pop("image_size") == 64 and "has_rewards" not in fields
    (shards / "manifest.json").write_text(json.dumps(fields))
    backend = open_backend("memory", shards, CONFIG, "train", 0)
    assert backend.image_size == 64 and backend.has_rewards


def test_a_recording_without_rewards_is_known_to_have_none(tmp_path):
    folder = layouts.lerobot_folder(tmp_path / "data", layouts.sample_episodes())
    info = json.loads((folder / "meta" / "info.json").read_text())
    del info["features"]["next.reward"]
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    assert not open_source(folder).has_rewards
    shards = pack(pack(folder, tmp_path / "first"), tmp_path / "shards")
    assert json.loads((shards / "manifest.json").read_text())["has_rewards"] is False
    config = LoaderConfig(batch_size=2, sequence_length=2)
    for kind, path in (("memory", folder), ("memory", shards), ("resident", shards), ("webdataset", shards)):
        backend = open_backend(kind, path, config, "train", 0)
        assert not backend.has_rewards
        assert not backend.batch(0).rewards.any()
    assert "rewards        not recorded" in inspect(shards, deep=True)


def test_a_recording_whose_actions_change_size_is_refused(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number, width in enumerate((3, 2, 3)):
        write_hdf5(folder / f"{number}.h5", columns([20], action_dim=width))
    with pytest.raises(UserError, match=r"1.h5, episode 0: actions of 2 numbers after 3"):
        open_store(folder, "train")
