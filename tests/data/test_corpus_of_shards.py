"""Every case of damage to shards, through every way in; the module `corpus` says what may come of it."""

import logging
import shutil

import numpy as np
import pytest
from corpus import (
    CONFIG, EXACT, LENGTHS, STREAM_STEPS, WAYS, Case, Truth, assert_clear, outcome, touches, watched
)
from damage_of_shards import SHARD_CASES
from made_recordings import columns, write_hdf5
from PIL import Image

from aime_fast.data.backends import open_backend, stream
from aime_fast.data.pack import pack
from aime_fast.data.store import open_store


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Streams shuffle few windows at a time, so that a case reads the data a few times and not a hundred."""
    monkeypatch.setattr(stream, "BLOCK_FRAMES", 8 * CONFIG.sequence_length)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of shards by codec, with the truth about it and what each way in reads of it."""
    root = tmp_path_factory.mktemp("whole")
    data = columns(LENGTHS, seed=4)
    data["dones"] = data["dones"].astype(bool)
    recording = write_hdf5(root / "r.h5", data)
    found = {}
    for codec in ("raw", "png", "jpg"):
        folder = pack(recording, root / codec / "shards", codec=codec, strips_per_shard=3)
        store = open_store(folder, "all")
        frames = [store.gather(np.array([[e, 0]]), n).observations[0].numpy() for e, n in enumerate(LENGTHS)]
        truth = Truth(data, np.concatenate(frames))
        reads = {}
        for way, read in WAYS.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stream, "BLOCK_FRAMES", 8 * CONFIG.sequence_length)
                reads[way] = outcome(lambda read=read, folder=folder, truth=truth: read(folder, truth))
        found[codec] = folder, truth, reads
    return found


@pytest.mark.parametrize("case", SHARD_CASES, ids=lambda case: case.name)
def test_a_damaged_folder_of_shards(case, whole, tmp_path, caplog):
    original, truth, reads = whole[case.name.partition("/")[0]]
    folder = shutil.copytree(original, tmp_path / "shards")
    damage = case.damage(folder, case.random)
    for way, read in WAYS.items():
        with watched(case, f"{damage}; read by {way}"):
            came, what = outcome(lambda: read(folder, truth))
            if came == "refused":
                assert_clear(what, case, folder)
                if case.strip and way != "inspect":
                    assert f"episode {case.strip[0]}" in what, what
            else:
                assert not (case.refused and way in (*EXACT, "inspect", "pack")), "damage went unnoticed"
                assert what == reads[way][1], "read something else without a word"
