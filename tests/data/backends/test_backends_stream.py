"""The streaming back-ends: which windows they yield, in which order, and that any step can be read again."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from made_recordings import columns, write_hdf5

from aime_fast.config import LoaderConfig
from aime_fast.data.backends import open_backend, stream
from aime_fast.data.packing.pack import pack
from aime_fast.errors import UserError

LENGTHS = [40, 16, 33, 5, 17, 50, 20]
TRAIN = LENGTHS[:6]
FIELDS = ("observations", "actions", "rewards", "dones", "terminated")
KINDS = ("dali-stream", "webdataset", "pipe")


@pytest.fixture(scope="module")
def data():
    return columns(LENGTHS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("shards")
    recording = write_hdf5(folder / "r.h5", data)
    return {
        codec: pack(recording, folder / codec, codec=codec, chunks_per_shard=3, val_episodes=1)
        for codec in ("raw", "png", "jpg")
    }


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 24 windows of 16 frames, so that a few batches go through several."""
    monkeypatch.setattr(stream, "BLOCK_FRAMES", 24 * 16)


def opened(kind, path, length=16, batch_size=6, seed=3, split="train", **options):
    config = LoaderConfig(batch_size=batch_size, sequence_length=length)
    if kind == "pipe":
        kind, path = "webdataset", f"pipe:cat '{path}'/{{}}"
    return open_backend(kind, path, config, split, seed, **options)


def named(batch, data):
    """(episode, first frame) of each window, found by its first actions, every column compared with the recording."""
    first, found = np.cumsum([0, *LENGTHS]), []
    for row in range(len(batch)):
        place = int(np.flatnonzero((data["actions"] == batch.actions[row, 0].numpy()).all(1))[0])
        episode = int(np.searchsorted(first, place, side="right")) - 1
        part = slice(place, place + batch.actions.shape[1])
        assert part.stop <= first[episode + 1], "the window crosses the end of the episode"
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(batch, name)[row].numpy(), data[name][part])
        found.append((episode, place - int(first[episode])))
    return found


@pytest.mark.parametrize("length", [5, 16, 33])
@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_hold_the_recording_s_windows_uniformly(shards, data, kind, codec, length, monkeypatch):
    """T passes hold every valid start once; in a block that spans more, no start comes twice oftener than another."""
    starts = [(e, s) for e, n in enumerate(TRAIN) for s in range(n - length + 1)]
    monkeypatch.setattr(stream, "BLOCK_FRAMES", length * len(starts) * 3 // 2)
    backend = opened(kind, shards[codec], length, batch_size=8)
    block = backend.order.block
    windows = [w for step in range(-(-block // 8)) for w in named(backend.batch(step), data)][:block]
    counts = [windows.count(start) for start in starts]
    assert sum(counts) == block
    assert max(counts) - min(counts) <= 1
    assert windows != sorted(windows)


def test_all_streams_are_one_order(shards):
    for codec in ("raw", "jpg"):
        streams = [opened(kind, shards[codec]) for kind in KINDS]
        for step in range(3):
            batches = [stream.batch(step) for stream in streams]
            for name in FIELDS:
                assert torch.equal(getattr(batches[0], name), getattr(batches[1], name))
                assert torch.equal(getattr(batches[0], name), getattr(batches[2], name))


@pytest.mark.parametrize("kind", KINDS)
def test_any_step_can_be_read_again(shards, kind):
    """Seed, step, rank and number of processes decide a batch: resumed is uninterrupted."""
    for rank, world_size in ((0, 1), (1, 2)):
        straight = opened(kind, shards["raw"])
        batches = [straight.batch(step, rank, world_size) for step in range(30)]
        for step in (17, 28, 2):
            resumed = opened(kind, shards["raw"])
            for following in (step, step + 1):
                found = resumed.batch(following, rank, world_size)
                for name in FIELDS:
                    assert torch.equal(getattr(found, name), getattr(batches[following], name))
    other = opened(kind, shards["raw"], seed=4).batch(0, 1, 2)
    assert not torch.equal(other.actions, batches[0].actions)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("kind", ["dali-stream", "webdataset"])
def test_ranks_read_different_shards(shards, data, kind, world_size):
    """In the first pass no window goes to two ranks, and together they have what one process has."""
    windows = []
    for rank in range(world_size):
        backend = opened(kind, shards["raw"], batch_size=6)
        count = len(backend.order.pass_of(0, rank, world_size))
        reader = itertools.islice(backend._stream(0, (rank, world_size)), count)
        windows += [(pieces[0][0].entry.id, pieces[0][0].number, pieces[0][1]) for pieces in reader]
        assert len(backend.batch(0, rank, world_size)) == 6 // world_size
    assert len(windows) == len(set(windows)) == len(opened(kind, shards["raw"]).order.pass_of(0, 0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_exact(shards, kind):
    """Also from a pipe, whose held-out episodes are read once into memory."""
    backend = opened(kind, shards["png"], split="val")
    assert backend.description.startswith("memory") and "stream" in backend.description
    expected = list(opened("memory", shards["png"], split="val").evaluation_windows(3))
    for found, wanted in zip(backend.evaluation_windows(3), expected, strict=True):
        assert torch.equal(found.observations, wanted.observations)
        assert torch.equal(found.actions, wanted.actions)
    train = opened(kind, shards["png"])
    assert train.evaluation_windows is not None
    first, wanted = next(train.evaluation_windows(16)), next(opened("memory", shards["png"]).evaluation_windows(16))
    assert torch.equal(first.observations, wanted.observations)


def test_what_is_known_before_training(shards):
    exact = opened("memory", shards["raw"])
    for kind in KINDS:
        stream = opened(kind, shards["raw"])
        assert stream.steps_per_epoch == exact.steps_per_epoch
        assert (stream.action_dim, stream.environment) == (3, "reacher_easy")
        assert "read in order" in stream.description and "\n" not in stream.description
        mean = stream.survey().mean_frame
        if kind == "pipe":  # of the first block of windows
            torch.testing.assert_close(mean, exact.survey().mean_frame, atol=0.25, rtol=0)
        else:
            assert torch.equal(mean, exact.survey().mean_frame)


def test_auto_streams_a_pipe(shards):
    backend = opened("auto", f"pipe:cat '{shards['raw']}'/{{}}")
    assert backend.description.startswith("webdataset (auto: a pipe")


@pytest.mark.parametrize(
    ("kind", "path", "words"),
    [
        ("webdataset", "pipe:cat folder/shard.tar", "write {} where the command takes the name"),
        ("webdataset", "pipe:false {}", "the command failed"),
        ("dali-stream", "pipe:cat '{folder}'/{}", "DALI reads files only"),
        ("dali", "pipe:cat '{folder}'/{}", "`aime-fast pack`"),
        ("webdataset", "/no/such/place", "no manifest.json here"),
    ],
)
def test_impossible_places_are_refused(shards, kind, path, words):
    with pytest.raises(UserError, match=words):
        opened(kind, path.replace("{folder}", str(shards["raw"])))


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_shard_stops_the_stream(shards, kind, tmp_path):
    folder = shutil.copytree(shards["raw"], tmp_path / "torn")
    for shard in folder.glob("*.tar"):
        data = shard.read_bytes()
        shard.write_bytes(data[: len(data) // 2 // 512 * 512])
    with pytest.raises(UserError) as error:
        opened(kind, folder).batch(0)
    assert "copy or pack" in str(error.value) and "\n" not in str(error.value)


def test_a_command_that_fails_on_the_way_stops_the_stream(shards):
    """It prints a shard whole and then reports a failure: what it printed cannot be trusted."""
    command = f"pipe:cat '{shards['raw']}'/{{}} && case {{}} in *.tar) exit 3;; esac"
    backend = open_backend("webdataset", command, LoaderConfig(batch_size=6), "train", 0)
    with pytest.raises(UserError, match="exit 3"):
        backend.batch(0)
