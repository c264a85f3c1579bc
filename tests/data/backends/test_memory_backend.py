import numpy as np
import pytest
import torch
from made_recordings import LENGTHS, columns, write_hdf5

from aime_fast.config import LoaderConfig, preset_config
from aime_fast.data import store as store_module
from aime_fast.data.backends import open_backend
from aime_fast.data.packing.pack import pack
from aime_fast.data.store import open_store
from aime_fast.data.windows import WindowSampler
from aime_fast.errors import UserError

FIRST = np.cumsum([0, *LENGTHS])


@pytest.fixture(params=["raw", "raw in many shards", "png", "hdf5"])
def path(request, recording, tmp_path):
    if request.param == "hdf5":
        return recording
    codec, *many = request.param.split(" ", 1)
    return pack(recording, tmp_path / "out", codec=codec, chunks_per_shard=2 if many else 1000)


def window(data, episode, start, length):
    """The columns of one window, cut out by hand."""
    part = slice(FIRST[episode] + start, FIRST[episode] + start + length)
    assert part.stop <= FIRST[episode + 1], "the window crosses the end of the episode"
    return [data[name][part] for name in ("observations", "actions", "rewards", "dones", "terminated")]


def assert_same(batch, windows):
    columns_found = (batch.observations, batch.actions, batch.rewards, batch.dones, batch.terminated)
    for number, expected in enumerate(windows):
        for found, wanted in zip(columns_found, expected, strict=True):
            np.testing.assert_array_equal(found[number].numpy(), wanted)


@pytest.mark.parametrize("length", [1, 7, 16, 33])
def test_batches_are_the_sampler_s_windows_of_the_source(path, data, length):
    config = LoaderConfig(batch_size=6, sequence_length=length)
    backend = open_backend("memory", path, config, "train", seed=5)
    sampler = WindowSampler(LENGTHS[:4], length, 6, seed=5)
    assert backend.steps_per_epoch == sampler.steps_per_epoch
    assert backend.action_dim == 3
    assert backend.environment == "reacher_easy"
    for step in (0, 1, 50, 3):
        batch = backend.batch(step)
        assert [field.dtype for field in (batch.observations, batch.actions, batch.rewards, batch.dones)] == [
            torch.uint8,
            torch.float32,
            torch.float32,
            torch.bool,
        ]
        assert batch.observations.shape == (6, length, 64, 64, 3)
        assert_same(batch, [window(data, episode, start, length) for episode, start in sampler.batch(step).tolist()])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_are_the_global_batch(path, world_size):
    backend = open_backend("auto", path, LoaderConfig(batch_size=5, sequence_length=9), "train", seed=1)
    whole = backend.batch(4)
    parts = [backend.batch(4, rank, world_size) for rank in range(world_size)]
    assert torch.equal(torch.cat([part.observations for part in parts]), whole.observations)
    assert torch.equal(torch.cat([part.actions for part in parts]), whole.actions)


def test_a_batch_is_the_caller_s_to_change(path):
    backend = open_backend("memory", path, LoaderConfig(batch_size=4, sequence_length=8), "train", seed=0)
    kept = backend.batch(0).observations.clone()
    backend.batch(0).observations.zero_()
    assert torch.equal(backend.batch(0).observations, kept)


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_evaluation_covers_every_window_in_order(path, data, stride):
    backend = open_backend("memory", path, LoaderConfig(batch_size=5, sequence_length=16), "train", seed=0)
    expected = [
        window(data, episode, start, 16)
        for episode, length in enumerate(LENGTHS[:4])
        for start in range(0, length - 15, stride)
    ]
    batches = list(backend.evaluation_windows(stride))
    assert [len(batch) for batch in batches[:-1]] == [5] * (len(batches) - 1)
    assert sum(len(batch) for batch in batches) == len(expected)
    for number, batch in enumerate(batches):
        assert_same(batch, expected[5 * number : 5 * number + len(batch)])


def test_splits_never_overlap(path, data):
    train, val, every = (open_store(path, split) for split in ("train", "val", "all"))
    assert (train.lengths, val.lengths, every.lengths) == (LENGTHS[:4], LENGTHS[4:], LENGTHS)
    assert_same(val.gather(np.array([[0, 1]]), 16), [window(data, 4, 1, 16)])


def test_rows_and_device(path):
    batch = open_backend("memory", path, LoaderConfig(batch_size=4, sequence_length=8), "train", seed=0).batch(0)
    part = batch.rows(1, 3)
    assert len(part) == 2
    assert torch.equal(part.observations, batch.observations[1:3])
    assert torch.equal(part.to("cpu").actions, batch.actions[1:3])


def test_the_sample_is_there_without_asking():
    config = preset_config("small").loader
    train, val = (open_backend("auto", None, config, split, 0) for split in ("train", "val"))
    assert train.environment == "cheetah_run"
    assert train.action_dim == 6
    assert train.steps_per_epoch == 8 * 113 // 8
    assert sum(len(batch) for batch in val.evaluation_windows(4)) == 2 * 29
    batch = train.batch(0)
    assert batch.observations.shape == (8, 16, 64, 64, 3)
    assert batch.actions.abs().max() <= 1
    assert "auto" in train.description and "sample" in train.description


def test_short_episodes_are_counted_and_left_out(path):
    backend = open_backend("memory", path, LoaderConfig(batch_size=4, sequence_length=17), "train", seed=0)
    assert "2 episodes shorter than 17 frames left out" in backend.description
    assert "left out" not in open_backend("memory", path, LoaderConfig(sequence_length=5), "train", 0).description


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            dict(kind="tape"),
            "unknown backend 'tape'; choose from auto, resident, memory, dali, dali-stream, webdataset",
        ),
        (dict(split="test"), "unknown split 'test'"),
        (dict(sampler_config=LoaderConfig(sequence_length=41)), "longest of 4 episodes has 40"),
        (dict(path="/no/such/place"), "/no/such/place: no such file or folder"),
        (dict(path="empty"), "no manifest.json here"),
    ],
)
def test_impossible_requests_are_refused(recording, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    defaults = dict(kind="auto", path=recording, sampler_config=LoaderConfig(), split="train", seed=0)
    with pytest.raises(UserError, match=words):
        open_backend(**{**defaults, **arguments})


def test_a_lone_episode_has_nothing_to_validate_on(tmp_path):
    path = write_hdf5(tmp_path / "lone.h5", columns([30]))
    assert open_store(path, "train").lengths == [30]
    with pytest.raises(UserError, match="none of its 1 episodes is in split 'val'"):
        open_store(path, "val")


def test_what_does_not_fit_in_memory_is_refused_before_it_is_read(recording, monkeypatch):
    class Full:
        available = 1000

    monkeypatch.setattr(store_module.psutil, "virtual_memory", lambda: Full)
    with pytest.raises(UserError, match="pack it with codec raw"):
        open_store(recording, "train")


def test_the_mean_frame_is_that_of_all_frames():
    store = open_store(None, "train")
    every = np.stack([np.arange(len(store.lengths)), np.zeros(len(store.lengths), np.int64)], 1)
    levels = store.gather(every, min(store.lengths)).observations.double().mean((0, 1))
    mean = open_backend("memory", None, LoaderConfig(), "train", 0).survey().mean_frame
    assert len(set(store.lengths)) == 1
    torch.testing.assert_close(mean, (levels / 127.5 - 1).movedim(-1, 0).float(), rtol=0, atol=1e-6)
