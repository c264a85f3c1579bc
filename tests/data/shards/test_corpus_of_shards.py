"""Every case of damage to shards, through every way in; the module `corpus` says what may come of it."""

import shutil

import numpy as np
import pytest
from corpus import CONFIG, EXACT, LENGTHS, STREAM_STEPS, STREAMS, WAYS, Truth, assert_clear, outcome, watched
from damage_of_shards import SHARD_CASES
from made_recordings import columns, write_hdf5

from aime_fast.data.backends import open_backend, stream
from aime_fast.data.packing.pack import pack
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
        folder = pack(recording, root / codec / "shards", codec=codec, chunks_per_shard=3)
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
            came, what = outcome(lambda read=read: read(folder, truth))
            if came == "refused":
                assert_clear(what, case, folder)
                if case.chunk and way != "inspect":
                    assert f"episode {case.chunk[0]}" in what, what
            else:
                assert not (case.refused and way in (*EXACT, "inspect", "pack")), "damage went unnoticed"
                assert what == reads[way][1], "read something else without a word"


CHUNK_CASES = [case for case in SHARD_CASES if case.chunk and case.refused]


@pytest.mark.parametrize("case", CHUNK_CASES, ids=lambda case: case.name)
def test_a_damaged_chunk_is_skipped_and_counted(case, whole, tmp_path, caplog):
    """By `memory` and one other back-end a case, in turns."""
    original, truth, _ = whole[case.name.partition("/")[0]]
    folder = shutil.copytree(original, tmp_path / "shards")
    damage = case.damage(folder, case.random)
    others = [kind for kind in (*EXACT, *STREAMS) if kind != "memory"]
    for kind in ("memory", others[CHUNK_CASES.index(case) % len(others)]):
        with watched(case, f"{damage}; skipped by {kind}"):
            caplog.clear()
            backend = open_backend(kind, folder, CONFIG, "train", 0, on_bad_sample="skip")
            sound = truth.all_windows("train", without=case.chunk)
            for step in range(STREAM_STEPS):
                assert set(truth.windows(backend.batch(step))) <= set(sound), "a window touches the damaged chunk"
            assert backend.skipped > 0
            if kind in EXACT:
                before = backend.skipped
                seen = [window for batch in backend.evaluation_windows(1) for window in truth.windows(batch)]
                assert seen == sound, "not all sound windows, and them alone"
                assert backend.skipped - before == len(truth.all_windows("train")) - len(sound)
            (line,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
            assert_clear(line, case, folder)
            assert f"episode {case.chunk[0]}, frames {16 * case.chunk[1]} to" in line
