"""What a loader holds does not grow with the epochs, nor, where shards are mapped or streamed, with the data."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from made_recordings import write_hdf5

from aime_fast.data.packing.pack import pack
from aime_fast.data.store import open_store

pytestmark = pytest.mark.slow

MB = 2**20
SCRIPT = """
import json, sys
from aime_fast.config import LoaderConfig
from aime_fast.data.backends import open_backend

def held():  # anonymous memory: pages of mapped files belong to the page cache, which takes them back when it must
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

kind, folder, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
before = held()
backend = open_backend(kind, folder, LoaderConfig(windows_per_epoch=400), "train", 0)
most = []
for epoch in range(epochs):
    most.append(0)
    for step in range(backend.steps_per_epoch):
        backend.batch(epoch * backend.steps_per_epoch + step)
        most[-1] = max(most[-1], held())
print(json.dumps({"before": before, "most": most}))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """By codec and size: the recorded sample, 1,280 frames (16 MB raw), and ten times as many."""
    folder = tmp_path_factory.mktemp("sizes")
    sample = open_store(None, "all").gather(np.stack([np.arange(10), np.zeros(10, np.int64)], 1), 128)
    short = {
        "observations": sample.observations.numpy().reshape(-1, 64, 64, 3),
        "actions": sample.actions.numpy().reshape(1280, -1),
        "rewards": sample.rewards.numpy().reshape(-1),
    }
    made = {}
    for times in (1, 10):
        data = {name: np.concatenate([values] * times) for name, values in short.items()}
        data["episode_ends"] = np.arange(1, 10 * times + 1) * 128
        recording = write_hdf5(folder / f"{times}.h5", data)
        for codec in ("raw", "jpg"):
            made[codec, times] = pack(recording, folder / f"{codec}-{times}", codec=codec, chunks_per_shard=40)
        recording.unlink()
    return made


def held(kind, folder, epochs):
    """Anonymous memory of the process, in bytes: `before` opening, and the most in each epoch."""
    command = [sys.executable, "-c", SCRIPT, kind, str(folder), str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("memory", "raw"), *itertools.product(("dali", "dali-stream", "webdataset"), ("raw", "jpg"))],
)
def test_memory_is_constant(shards, kind, codec):
    """Over 10 epochs within 5 %; and 138 MB more of raw frames may cost 10 MB: their actions, and noise."""
    small, large = held(kind, shards[codec, 1], 3), held(kind, shards[codec, 10], 10)
    loader, larger = (max(run["most"][:3]) - run["before"] for run in (small, large))
    first, last = large["most"][1], large["most"][-1]
    print(
        f"{kind} {codec}: process {first / MB:.1f} -> {last / MB:.1f} MB; loader {larger / MB:.1f} MB, "
        f"of a tenth of the data {loader / MB:.1f} MB"
    )
    assert last <= 1.05 * first
    assert larger <= loader + 10 * MB
