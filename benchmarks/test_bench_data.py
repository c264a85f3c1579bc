"""Seconds a window of every way to read the same frames: B=8, T=16, 10,240 frames (126 MB, beyond most caches).

One thread for torch; after the warm-up the files are in the page cache and their checksums compared. The baseline is
h5py in a `DataLoader`; the peers are WebDataset, Lance and a bare NumPy gather. What reads ahead works between two
calls, so each way has its rounds by itself. `-k wait` measures how long training waits for its data.
"""

import importlib.util
import io
import json
import os
import tarfile
from itertools import islice

import h5py
import numpy as np
import pytest
import torch
import webdataset as wds
from measuring import apart, run, threads
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from aime_fast.config import LoaderConfig
from aime_fast.data.backends import open_backend
from aime_fast.data.dataset import DMCVBDataset
from aime_fast.data.packing.pack import pack
from aime_fast.data.store import open_store
from aime_fast.data.windows import WindowSampler

pytestmark = pytest.mark.timeout(600)
B, T, STEPS, ROUNDS = 8, 16, 16, 9
CONFIG = LoaderConfig(batch_size=B, sequence_length=T)
WAIT_STEPS = 8
EPISODES, LENGTH = 80, 128
WINDOWS = B * STEPS
"""Of a round."""
OPTIONS = {"unit": "s", "shape": f"a window of {T} frames, 64 x 64", "dtype": "uint8"}


class PlainHDF5(Dataset):
    """What one writes on the first day: open the file, slice a window, scale it."""

    def __init__(self, path):
        self.file = h5py.File(path, "r")

    def __len__(self):
        return EPISODES * (LENGTH - T + 1)

    def __getitem__(self, index):
        first = index // (LENGTH - T + 1) * LENGTH + index % (LENGTH - T + 1)
        window = slice(first, first + T)
        return {name: torch.from_numpy(self.file[name][window]) for name in ("observations", "actions", "rewards")}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """The recorded sample, eight times over, as uncompressed HDF5."""
    path = tmp_path_factory.mktemp("bench") / "frames.h5"
    sample = open_store(None, "all").gather(np.stack([np.arange(10), np.zeros(10, np.int64)], 1), LENGTH)
    with h5py.File(path, "w") as file:
        file["observations"] = np.tile(sample.observations.numpy().reshape(-1, 64, 64, 3), (8, 1, 1, 1))
        file["actions"] = np.tile(sample.actions.numpy().reshape(-1, 6), (8, 1))
        file["rewards"] = np.tile(sample.rewards.numpy().reshape(-1), 8)
        file["episode_ends"] = np.arange(1, EPISODES + 1) * LENGTH
    return path


@pytest.fixture(scope="module")
def shards(recording):
    """Packs the frames in the way that is asked for, once."""
    ways = {codec: dict(codec=codec, chunks_per_shard=1000) for codec in ("raw", "jpg", "png")}
    ways["many raw"] = dict(codec="raw", chunks_per_shard=16)

    def packed(way):
        folder = recording.parent / f"shards-{way}"
        return folder if folder.exists() else pack(recording, folder, val_episodes=0, **ways[way])

    return packed


@pytest.fixture(scope="module")
def hdf5(recording):
    """Seconds a window of the baseline: a DataLoader over h5py, frames left as uint8 as the back-ends leave them."""
    dataset = PlainHDF5(recording)
    loader = DataLoader(dataset, B, sampler=RandomSampler(dataset, num_samples=WINDOWS))
    return seconds_a_window(lambda: list(loader))


@pytest.fixture
def reading(record, hdf5):
    """Adds the row of one way to read."""

    def add(form, samples):
        record("reading", "h5py in a DataLoader", hdf5, **OPTIONS)
        record("reading", form, samples, baseline=("h5py in a DataLoader", hdf5), **OPTIONS)

    return add


def seconds_a_window(read, windows=WINDOWS):
    """Of each round of `read`, which reads `windows`."""
    with threads(1):
        return [seconds / windows for seconds in apart(read, ROUNDS)]


def seconds_of_backend(kind, path, count=STEPS):
    """Of `count` batches a round. Rounds follow one another: what is read ahead in one is used in the next."""
    backend = open_backend(kind, path, CONFIG, "train", 0)
    steps = iter(range(10**9))
    return seconds_a_window(lambda: [backend.batch(step) for step in islice(steps, count)], count * B)


@pytest.mark.parametrize("way", [pytest.param("raw", marks=pytest.mark.quick), "many raw", "png", "jpg"])
def test_memory_backend(reading, shards, way):
    reading(f"memory, {way}", seconds_of_backend("memory", shards(way)))


def test_resident_backend(reading, shards):
    """On the CPU, where it has nothing over `memory`."""
    reading("resident, raw", seconds_of_backend("resident", shards("raw")))


@pytest.mark.parametrize("way", ["raw", "jpg", "png"])
@pytest.mark.parametrize("kind", ["dali", "dali-stream", "webdataset"])
def test_pipelined_backends(reading, shards, kind, way):
    """A round is longer than what is read ahead, so that none is made of that alone."""
    reading(f"{kind}, {way}", seconds_of_backend(kind, shards(way), 4 * STEPS))


# WebDataset leaves the shard it has open to the garbage collector.
@pytest.mark.quick
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_jpeg_a_frame(reading, recording):
    """The usual WebDataset: a JPEG of each frame (quality 95, 4:4:4) beside its action, decoded by Pillow.

    Frames are read in order and windows do not overlap: each frame is decoded once, which the random windows of the
    other rows are not granted.
    """
    shard = recording.parent / "frames.tar"
    with h5py.File(recording) as file, tarfile.open(shard, "w") as tar:
        for number, (frame, action) in enumerate(zip(file["observations"][:], file["actions"][:], strict=True)):
            picture = io.BytesIO()
            Image.fromarray(frame).save(picture, "JPEG", quality=95, subsampling="4:4:4")
            for ending, data in (("jpg", picture.getvalue()), ("act", action.tobytes())):
                member = tarfile.TarInfo(f"{number:08d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    samples = (
        wds.WebDataset(str(shard), shardshuffle=False, nodesplitter=None, empty_check=False).decode("rgb8").repeat()
    )
    stream = iter(samples)

    def batches():
        for _ in range(2):
            rows = list(islice(stream, B * T))
            torch.from_numpy(np.stack([row["jpg"] for row in rows]).reshape(B, T, 64, 64, 3))
            np.stack([np.frombuffer(row["act"], np.float32) for row in rows]).reshape(B, T, -1)

    reading("WebDataset, one JPEG a frame", seconds_a_window(batches, 2 * B))
    stream.close()


@pytest.mark.quick
@pytest.mark.skipif(importlib.util.find_spec("lance") is None, reason="the peer Lance is missing: pip install pylance")
def test_lance(reading, recording):
    """Random windows out of a Lance table with a row for each frame, its pixels uncompressed."""
    import lance
    import pyarrow as pa

    with h5py.File(recording) as file:
        columns = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values[0].size)
            for name, values in ((name, file[name][:]) for name in ("observations", "actions"))
        }
    table = lance.write_dataset(pa.table(columns), recording.parent / "frames.lance")
    steps = iter(range(10**9))

    def batches():
        for step in islice(steps, STEPS):
            found = table.take(rows_of(step).ravel(), columns=["observations", "actions"])
            frames, actions = (column.combine_chunks().flatten().to_numpy() for column in found.columns)
            torch.from_numpy(frames.reshape(B, T, 64, 64, 3)), torch.from_numpy(actions.reshape(B, T, -1))

    with h5py.File(recording) as file:
        first = table.take(rows_of(0)[0], columns=["observations"]).column(0).combine_chunks().flatten().to_numpy()
        assert np.array_equal(first.reshape(T, 64, 64, 3), file["observations"][rows_of(0)[0]])
    # PyArrow's arrays are read-only, and torch warns that writing to them is undefined; nothing here writes.
    with pytest.warns(UserWarning, match="not writable"):
        samples = seconds_a_window(batches)
    reading("Lance, raw", samples)


@pytest.mark.quick
def test_bare_numpy_gather(reading, recording):
    """The ceiling: the same windows' pixels alone, copied by NumPy out of one memory map."""
    frames = np.memmap(recording.parent / "bare.raw", np.uint8, "w+", shape=(EPISODES * LENGTH, 64 * 64 * 3))
    with h5py.File(recording) as file:
        frames[:] = file["observations"][:].reshape(frames.shape)
    rows, plain = [rows_of(step) for step in range(STEPS)], np.asarray(frames)
    reading("NumPy gather, pixels alone", seconds_a_window(lambda: [plain[index] for index in rows]))


def rows_of(step):
    """The numbers of the frames in the windows of a step: int64 [B, T]."""
    windows = SAMPLER.batch(step)
    return windows[:, :1] * LENGTH + windows[:, 1:] + np.arange(T)


SAMPLER = WindowSampler([LENGTH] * EPISODES, T, B, 0)


# Workers are forked, and inherit what other benchmarks have left to the garbage collector. Python 3.12 warns of a fork
# beside threads.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")
def test_hdf5_with_workers(reading, recording):
    """Two workers, whose start is in the time measured."""
    dataset, count = PlainHDF5(recording), 8 * WINDOWS
    loader = DataLoader(dataset, B, sampler=RandomSampler(dataset, num_samples=count), num_workers=2)
    reading("h5py in a DataLoader, two workers", seconds_a_window(lambda: list(loader), count))


def test_dmcvb_dataset(reading, shards):
    """The map-style view, whose items are floats: four times the bytes."""
    dataset = DMCVBDataset(shards("raw"), T)
    places = np.random.default_rng(0).integers(0, len(dataset), WINDOWS)
    reading("DMCVBDataset, raw", seconds_a_window(lambda: [dataset[place] for place in places]))


WAITS = [
    pytest.param(kind, codec, marks=[] if (kind, codec) in [("memory", "raw"), ("dali", "jpg")] else pytest.mark.slow)
    for kind in ("resident", "memory", "dali", "dali-stream", "webdataset")
    for codec in ("raw", "jpg")
]


@pytest.mark.parametrize("kind, codec", WAITS)
def test_data_wait(record, recording, tmp_path, kind, codec):
    """How long `small` waits for data: for the very first batch less than a step, in all steps after under 2 %."""
    shards = recording.parent / f"wait-{codec}"
    if not shards.exists():
        pack(recording, shards, codec=codec, chunks_per_shard=80, val_episodes=1)
    flags = ["--preset", "small", "--steps", WAIT_STEPS, "--threads", 2, "--logging.log_every", 1, "--backend", kind]
    flags += ["--refit-steps", 0]
    run("aime_fast/train.py", *flags, "--data", shards, "--out", tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds, waited = np.array(
        [(B * T / row["frames_per_second"], row["data_wait"]) for row in rows if row["split"] == "train"]
    ).T
    waited *= seconds
    assert len(seconds) == WAIT_STEPS and waited[0] < np.median(seconds)
    options = {"unit": "s", "shape": f"small B={B} T={T}, {codec}", "paired": True}
    record("wait for data", kind, waited[1:], baseline=("the step", seconds[1:]), **options)


@pytest.mark.parametrize("codec", ["raw", "png", "jpg"])
def test_pack(record_forms, recording, codec):
    """By one process, and by two whose start is in the time measured."""

    def packing(workers):
        folder = recording.parent / f"packed-{codec}-{workers}"
        options = dict(codec=codec, force=True, workers=workers, chunks_per_shard=80)
        return [seconds / (EPISODES * LENGTH) for seconds in apart(lambda: pack(recording, folder, **options), 3)]

    samples = {"one process": packing(1), "two processes": packing(2)}
    record_forms("packing", samples, baseline="one process", paired=False, unit="s", shape=f"a frame as {codec}")
