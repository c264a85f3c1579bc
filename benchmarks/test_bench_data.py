"""Windows per second of every way to read the same frames: B=8, T=16, 10,240 frames (126 MB, beyond most caches).

Run with `make bench ARGS=benchmarks/test_bench_data.py`. One thread for torch; after the warm-up the files are in the
page cache and their checksums compared. `extra_info` holds the windows per second of the slowest, median and fastest
round, and the windows per second of CPU time, all threads together, over all rounds. `-k wait` measures how long
training waits for its data, and fails at 2 % of the time.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from aime_fast.config import LoaderConfig
from aime_fast.data.backends import open_backend
from aime_fast.data.dataset import DMCVBDataset
from aime_fast.data.packing.pack import pack
from aime_fast.data.store import open_store
from aime_fast.data.windows import WindowSampler

B, T, STEPS, ROUNDS = 8, 16, 64, 15
CONFIG = LoaderConfig(batch_size=B, sequence_length=T)
ROOT = Path(__file__).parents[1]
WAIT_STEPS = 12
EPISODES, LENGTH = 80, 128


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
    """The same frames packed in every way that is measured."""
    folder = recording.parent
    ways = {codec: dict(codec=codec, chunks_per_shard=1000) for codec in ("raw", "jpg", "png")}
    ways["many raw"] = dict(codec="raw", chunks_per_shard=16)
    return {way: pack(recording, folder / f"shards-{way}", val_episodes=0, **how) for way, how in ways.items()}


def measure(benchmark, read, windows=B * STEPS, rounds=ROUNDS):
    """Time `read`, which yields `windows` windows, and record their rates."""
    torch.set_num_threads(1)
    cpu = []

    def clocked():
        started = time.process_time()
        read()
        cpu.append(time.process_time() - started)

    benchmark.group = "windows"
    benchmark.pedantic(clocked, rounds=rounds, warmup_rounds=2)
    stats = benchmark.stats.stats
    benchmark.extra_info["windows_per_second"] = [round(windows / t) for t in (stats.max, stats.median, stats.min)]
    benchmark.extra_info["windows_per_cpu_second"] = round(windows * rounds / sum(cpu[2:]))


@pytest.mark.parametrize("way", ["raw", "many raw", "png", "jpg"])
def test_memory_backend(benchmark, shards, way):
    backend = open_backend("memory", shards[way], CONFIG, "train", 0)
    measure(benchmark, lambda: [backend.batch(step) for step in range(STEPS)])


def test_resident_backend(benchmark, shards):
    """On the CPU, where it has nothing over `memory`."""
    backend = open_backend("resident", shards["raw"], CONFIG, "train", 0)
    measure(benchmark, lambda: [backend.batch(step) for step in range(STEPS)])


@pytest.mark.parametrize("way", ["raw", "jpg", "png"])
@pytest.mark.parametrize("kind", ["dali", "dali-stream", "webdataset"])
def test_pipelined_backends(benchmark, shards, kind, way):
    """Rounds follow one another, so that what is read ahead in one is used in the next."""
    backend = open_backend(kind, shards[way], CONFIG, "train", 0)
    steps = iter(range(10**9))
    measure(benchmark, lambda: [backend.batch(step) for step in islice(steps, STEPS)], rounds=7)


# WebDataset leaves the shard it has open to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_jpeg_a_frame(benchmark, recording):
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
    frames = EPISODES * LENGTH
    samples = (
        wds.WebDataset(str(shard), shardshuffle=False, nodesplitter=None, empty_check=False).decode("rgb8").repeat()
    )
    stream = iter(samples)

    def batches():
        for _ in range(frames // (B * T)):
            rows = list(islice(stream, B * T))
            torch.from_numpy(np.stack([row["jpg"] for row in rows]).reshape(B, T, 64, 64, 3))
            np.stack([np.frombuffer(row["act"], np.float32) for row in rows]).reshape(B, T, -1)

    measure(benchmark, batches, windows=frames // T, rounds=5)
    stream.close()


def test_bare_numpy_gather(benchmark, recording):
    """The ceiling: the same windows' pixels alone, copied by NumPy out of one memory map."""
    frames = np.memmap(recording.parent / "bare.raw", np.uint8, "w+", shape=(EPISODES * LENGTH, 64 * 64 * 3))
    with h5py.File(recording) as file:
        frames[:] = file["observations"][:].reshape(frames.shape)
    sampler = WindowSampler([LENGTH] * EPISODES, T, B, 0)
    rows = [(w[:, :1] * LENGTH + w[:, 1:] + np.arange(T)) for w in map(sampler.batch, range(STEPS))]
    plain = np.asarray(frames)
    measure(benchmark, lambda: [plain[index] for index in rows])


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_hdf5_loader(benchmark, recording, workers):
    """A DataLoader over h5py, frames left as uint8 as the back-ends leave them; workers start in the time measured."""
    dataset = PlainHDF5(recording)
    loader = DataLoader(dataset, B, sampler=RandomSampler(dataset, num_samples=2048), num_workers=workers)
    measure(benchmark, lambda: list(loader), windows=2048, rounds=5)


def test_dmcvb_dataset(benchmark, shards):
    """The map-style view, whose items are floats: four times the bytes."""
    dataset = DMCVBDataset(shards["raw"], T)
    places = np.random.default_rng(0).integers(0, len(dataset), B * STEPS)
    measure(benchmark, lambda: [dataset[place] for place in places])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("codec", ["raw", "jpg"])
@pytest.mark.parametrize("kind", ["resident", "memory", "dali", "dali-stream", "webdataset"])
def test_data_wait(benchmark, recording, tmp_path, kind, codec):
    """How long `small` waits for data: for the very first batch less than a step, in all steps after under 2 %."""
    shards = recording.parent / f"wait-{codec}"
    if not shards.exists():
        pack(recording, shards, codec=codec, chunks_per_shard=80, val_episodes=1)
    flags = ["--preset", "small", "--steps", WAIT_STEPS, "--threads", 2, "--logging.log_every", 1, "--backend", kind]
    command = [sys.executable, "aime_fast/train.py", *flags, "--data", shards, "--out", tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "2"}
    benchmark.group = "wait"
    run = dict(cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    benchmark.pedantic(subprocess.run, ([*map(str, command)],), run, rounds=1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds, waited = np.array(
        [(B * T / row["frames_per_second"], row["data_wait"]) for row in rows if row["split"] == "train"]
    ).T
    waited *= seconds
    later = waited[1:].sum() / seconds[1:].sum()
    benchmark.extra_info |= {
        "first_batch_waited_ms": round(float(1000 * waited[0]), 1),
        "later_steps_percent": round(float(100 * later), 3),
        "with_the_first_batch_percent": round(float(100 * waited.sum() / seconds.sum()), 3),
        "seconds_a_step": round(float(np.median(seconds)), 2),
    }
    print(kind, codec, benchmark.extra_info)
    assert len(seconds) == WAIT_STEPS and waited[0] < np.median(seconds) and later < 0.02


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("codec", ["raw", "png", "jpg"])
def test_pack(benchmark, recording, codec, workers):
    """Frames a second of packing by one process, and by two whose start is in the time measured."""
    benchmark.group = "pack"
    options = dict(codec=codec, force=True, workers=workers, chunks_per_shard=80)
    benchmark.pedantic(pack, (recording, recording.parent / f"packed-{codec}"), options, rounds=3, warmup_rounds=1)
    frames = EPISODES * LENGTH / benchmark.stats.stats.median
    benchmark.extra_info["frames_per_second"] = round(frames)
