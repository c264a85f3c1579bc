"""The exact back-ends: one order of windows, decided by the seed and the step, however the frames are held."""

import io
import json

import numpy as np
import pytest
import torch
from made_recordings import LENGTHS, columns, write_hdf5
from PIL import Image

from aime_fast.config import LoaderConfig
from aime_fast.data import backends
from aime_fast.data.backends import open_backend
from aime_fast.data.packing.pack import pack
from aime_fast.data.store import open_store
from aime_fast.errors import UserError

EXACT = ("resident", "memory", "dali")
TRAIN = LENGTHS[:4]
FIELDS = ("observations", "actions", "rewards", "dones", "terminated")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    recording = write_hdf5(folder / "r.h5", columns())
    return {codec: pack(recording, folder / codec, codec=codec, chunks_per_shard=3) for codec in ("raw", "png", "jpg")}


def opened(kind, path, length=16, batch_size=5, seed=3, split="train", **config):
    loader = LoaderConfig(batch_size=batch_size, sequence_length=length, **config)
    return open_backend(kind, path, loader, split, seed)


def assert_equal(found, expected):
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def chunks_by_hand(folder):
    """Frames of every episode as Pillow decodes them from the members, found with the manifest and the index alone."""
    manifest = json.loads((folder / "manifest.json").read_text())
    episodes = []
    for entry in manifest["episodes"]:
        shard = folder / manifest["shards"][entry["shard"]]["file"]
        data, lines = shard.read_bytes(), shard.with_suffix(".idx").read_text().splitlines()[1:]
        rows = [line.split(" ") for line in lines[entry["first_sample"] :][: -(-entry["length"] // 16)]]
        pictures = [Image.open(io.BytesIO(data[int(row[1]) : int(row[1]) + int(row[2])])) for row in rows]
        episodes.append(np.concatenate([np.asarray(picture).reshape(-1, 64, 64, 3) for picture in pictures]))
    return episodes


@pytest.mark.parametrize("length", [1, 7, 16, 17, 33])
@pytest.mark.parametrize("codec", ["raw", "png"])
def test_every_back_end_gives_the_recording_s_windows_bit_for_bit(shards, data, codec, length):
    first = np.cumsum([0, *LENGTHS])
    found = [opened(kind, shards[codec], length) for kind in EXACT]
    assert len({backend.steps_per_epoch for backend in found}) == 1
    for step in (0, 1, 2, 40, 3):
        batches = [backend.batch(step) for backend in found]
        for number, (episode, start) in enumerate(found[0].sampler.batch(step).tolist()):
            part = slice(first[episode] + start, first[episode] + start + length)
            assert part.stop <= first[episode + 1]
            for batch in batches:
                for name in FIELDS:
                    np.testing.assert_array_equal(getattr(batch, name)[number].numpy(), data[name][part])


def test_jpg_is_what_pillow_decodes(shards):
    """Zero difference was seen; another build of libjpeg-turbo may round an inverse transform otherwise, by one."""
    episodes = chunks_by_hand(shards["jpg"])
    for kind in EXACT:
        backend = opened(kind, shards["jpg"])
        for step in range(4):
            pixels = backend.batch(step).observations.numpy()
            for window, (episode, start) in zip(pixels, backend.sampler.batch(step).tolist(), strict=True):
                wanted = episodes[episode][start : start + 16].astype(int)
                assert np.abs(window - wanted).max() <= (0 if kind != "dali" else 1)


@pytest.mark.parametrize("kind", EXACT)
def test_seed_and_step_alone_decide(shards, kind):
    """Whatever was read before, ahead, or by which rank: a resumed run and another world size see the same order."""
    used = opened(kind, shards["raw"])
    for step in (0, 1, 9, 4):
        used.batch(step)
    for step in (5, 6, 2):
        fresh = opened(kind, shards["raw"])
        whole = fresh.batch(step)
        assert_equal(used.batch(step), whole)
        for world_size in (2, 3):
            parts = [opened(kind, shards["raw"]).batch(step, rank, world_size) for rank in range(world_size)]
            for name in FIELDS:
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    other = opened(kind, shards["raw"], seed=4).batch(5)
    assert not torch.equal(other.observations, used.batch(5).observations)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("kind", EXACT)
def test_one_epoch_at_stride_one_covers_every_window_once(shards, data, kind, world_size):
    """46 valid starts in batches of 6: two orders are 92, of which the first 46 windows given out are all different."""
    starts = sum(length - 15 for length in TRAIN if length >= 16)
    ranks = [opened(kind, shards["raw"], batch_size=6, window_stride=1) for _ in range(world_size)]
    assert ranks[0].sampler.windows_per_epoch == starts
    seen = []
    for step in range(ranks[0].steps_per_epoch):
        for rank, backend in enumerate(ranks):
            seen += [row.numpy().tobytes() for row in backend.batch(step, rank, world_size).actions]
    # No two frames have the same actions, so a window's actions are its name.
    first = np.cumsum([0, *TRAIN])
    every = {
        data["actions"][first[e] + s : first[e] + s + 16].tobytes()
        for e, length in enumerate(TRAIN)
        for s in range(length - 15)
    }
    assert len(every) == starts
    assert set(seen[:starts]) == every


@pytest.mark.parametrize("codec", ["raw", "jpg"])
@pytest.mark.parametrize("kind", ["resident", "dali"])
def test_evaluation_is_that_of_memory(shards, kind, codec):
    for stride in (1, 16):
        expected = list(opened("memory", shards[codec], split="train").evaluation_windows(stride))
        found = list(opened(kind, shards[codec], split="train").evaluation_windows(stride))
        assert len(found) == len(expected)
        for batch, wanted in zip(found, expected, strict=True):
            assert_equal(batch, wanted)


@pytest.mark.parametrize("kind", EXACT)
def test_the_mean_frame_is_the_same_to_the_bit(shards, data, kind):
    frames = data["observations"][: sum(TRAIN)]
    mean = torch.from_numpy(frames.mean(0, dtype=np.float64) / 127.5 - 1).movedim(-1, 0).float()
    found = opened(kind, shards["raw"]).survey().mean_frame
    assert torch.equal(found, opened("memory", shards["png"]).survey().mean_frame)
    torch.testing.assert_close(found, mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", EXACT)
def test_a_batch_is_the_caller_s_to_change(shards, kind):
    backend = opened(kind, shards["raw"])
    kept = backend.batch(0).observations.clone()
    for _ in range(2):
        batch = backend.batch(0)
        assert torch.equal(batch.observations, kept)
        batch.observations.zero_()


def test_a_recording_can_be_resident_and_is_not_for_dali(shards, tmp_path):
    recording = write_hdf5(tmp_path / "r.h5", columns())
    assert_equal(opened("resident", recording).batch(2), opened("memory", shards["raw"]).batch(2))
    for kind in ("dali", "dali-stream", "webdataset"):
        with pytest.raises(UserError, match="`aime-fast pack`"):
            opened(kind, recording)


def test_auto_says_why(shards, tmp_path, monkeypatch):
    recording = write_hdf5(tmp_path / "r.h5", columns())
    reasons = {shards["raw"]: "raw shards are mapped", shards["jpg"]: "fit the host", recording: "in memory already"}
    for path, reason in reasons.items():
        description = opened("auto", path).description
        assert description.startswith("memory (auto:") and reason in description and "\n" not in description
    monkeypatch.setattr(backends, "free_bytes", lambda device: 1000)
    description = opened("auto", shards["jpg"]).description
    assert description.startswith("dali on cpu (auto:") and "do not fit" in description
    assert opened("auto", shards["raw"]).description.startswith("memory (auto: raw")


def test_what_does_not_fit_the_device_is_refused(shards, monkeypatch):
    monkeypatch.setattr(backends.resident, "free_bytes", lambda device: 1000)
    with pytest.raises(UserError, match="use --backend memory or dali"):
        opened("resident", shards["raw"])


def test_without_dali_the_message_says_how_to_get_it(shards, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nvidia.dali", None)
    with pytest.raises(UserError, match="pip install nvidia-dali"):
        opened("dali", shards["raw"]).batch(0)


def test_an_open_store_checks_what_the_windows_touch(shards):
    store = open_store(shards["raw"], "train")
    assert store.chunks is not None and not store.chunks.checked.any()
    assert store.sound(np.array([[0, 8]]), 16).all()
    assert store.chunks.checked.sum() == 2
