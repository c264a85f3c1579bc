"""What a loader holds does not grow with the epochs, nor, where shards are mapped or streamed, with the data."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from made_recordings import columns, write_hdf5

from aime_fast.data.pack import pack

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
after = []
for epoch in range(epochs):
    for step in range(backend.steps_per_epoch):
        backend.batch(epoch * backend.steps_per_epoch + step)
    after.append(held())
print(json.dumps({"before": before, "after": after}))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """By codec and size: 1,280 frames (15 MB raw), and ten times as many."""
    folder = tmp_path_factory.mktemp("sizes")
    short = columns([128] * 10)
    made = {}
    for times in (1, 10):
        data = {name: np.concatenate([values] * times) for name, values in short.items() if name != "episode_ends"}
        recording = write_hdf5(folder / f"{times}.h5", data)
        for codec in ("raw", "jpg"):
            made[codec, times] = pack(recording, folder / f"{codec}-{times}", codec=codec, strips_per_shard=40)
        recording.unlink()
    return made


def held(kind, folder, epochs):
    command = [sys.executable, "-c", SCRIPT, kind, str(folder), str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("memory", "raw"), *itertools.product(("dali", "dali-stream", "webdataset"), ("raw", "jpg"))],
)
def test_memory_is_constant(shards, kind, codec):
    """Over 10 epochs within 5 %; and 138 MB more of raw frames may cost 10 MB: their actions, and noise."""
    small, large = held(kind, shards[codec, 1], 2), held(kind, shards[codec, 10], 10)
    first, last = large["after"][1], large["after"][-1]
    print(
        f"{kind} {codec}: {small['after'][-1] / MB:.1f} MB, ten times the data {first / MB:.1f} -> {last / MB:.1f} MB"
    )
    assert last <= 1.05 * first
    assert last - large["before"] <= small["after"][-1] - small["before"] + 10 * MB
