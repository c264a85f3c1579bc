"""Harm that comes while data is read or written: full disks, files that shrink or go. And the count of all cases."""

import os
import resource
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import written_layouts as layouts
from corpus import CONFIG, EXACT, LENGTHS, STREAMS, Case, assert_clear, isolated, outcome, watched
from damage_of_recordings import LAYOUTS, RECORDING_CASES, data_files
from damage_of_shards import FIRST, SECOND, SHARD_CASES
from made_recordings import columns, write_hdf5

from aime_fast.data.backends import open_backend, stream
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.data.sources import open_source
from aime_fast.errors import UserError


def cut_all(path: Path, share: float) -> str:
    for file in data_files(path):
        os.truncate(file, int(share * file.stat().st_size))
    return f"every file cut to {share:.0%}"


def empty_all(path: Path, random: np.random.Generator) -> str:
    return cut_all(path, 0.0)


def halve_all(path: Path, random: np.random.Generator) -> str:
    return cut_all(path, 0.5)


def delete_all(path: Path, random: np.random.Generator) -> str:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return "deleted"


HARMS = {"emptied": empty_all, "halved": halve_all, "deleted": delete_all}
NAMES = (f"{FIRST}.", f"{SECOND}.", "shards")
SHARD_MOMENTS = [
    # What is in memory, or mapped and then deleted, can still be read.
    Case(f"{kind}/{codec} {how}", harm, NAMES, refused=kind in STREAMS or (how != "deleted" and kind == "dali"))
    for kind, codec in (*((kind, "raw") for kind in (*EXACT, *STREAMS)), ("dali", "jpg"), ("webdataset", "jpg"))
    for how, harm in HARMS.items()
]
RECORDING_MOMENTS = [
    Case(f"{layout}/read while {how}", harm, ("data",))
    for layout in LAYOUTS
    for how, harm in HARMS.items()
    if how != "halved"
]


def read_on(folder: Path, kind: str, case: Case | None) -> tuple[str, str]:
    """What comes of reading on after the harm; without a case, of reading what is whole."""
    stream.BLOCK_FRAMES = 8 * CONFIG.sequence_length
    backend = open_backend(kind, folder, CONFIG, "train", 0)
    for step in range(2):
        backend.batch(step)
    if case:
        case.damage(folder, case.random)
    # Enough steps for a stream to leave behind what it had read ahead.
    return outcome(lambda: (backend.batch(step).observations.numpy().tobytes() for step in range(2, 20)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    recording = write_hdf5(root / "r.h5", columns(LENGTHS, seed=4))
    return {codec: pack(recording, root / codec, codec=codec, chunks_per_shard=3) for codec in ("raw", "png", "jpg")}


@pytest.mark.parametrize("case", SHARD_MOMENTS, ids=lambda case: case.name)
def test_shards_harmed_while_training_reads_them(case, shards, tmp_path):
    kind, _, rest = case.name.partition("/")
    folder = shutil.copytree(shards[rest.partition(" ")[0]], tmp_path / "shards")
    with watched(case, "while it was read"):
        whole = isolated(read_on, folder, kind, None)
        came, what = isolated(read_on, folder, kind, case)
        assert whole[0] == "read"
        if came == "refused":
            assert_clear(what, case, folder)
        else:
            assert not case.refused, "read on as if nothing had been"
            assert what == whole[1]


def read_the_rest(path: Path, case: Case | None) -> tuple[str, str]:
    source = open_source(path)
    first = source.episode(0).observations.tobytes()
    if case:
        case.damage(path, case.random)
    return outcome(lambda: (first, *(source.episode(number).observations.tobytes() for number in (1, 2))))


@pytest.mark.parametrize("case", RECORDING_MOMENTS, ids=lambda case: case.name)
def test_a_recording_harmed_while_it_is_read(case, tmp_path):
    (tmp_path / "data").mkdir()
    path = LAYOUTS[case.name.partition("/")[0]](tmp_path / "data", layouts.sample_episodes([9, 4, 6]))
    with watched(case, "while it was read"):
        whole = isolated(read_the_rest, path, None)
        came, what = isolated(read_the_rest, path, case)
        assert whole[0] == "read"
        assert what == whole[1] if came == "read" else assert_clear(what, case, path) is None


@contextmanager
def files_of_at_most(size: int):
    """The kernel refuses to make a file longer, as it does where a quota is used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


ROOM = [0, 100, 1000, 5000, 100_000, 300_000]


@pytest.mark.parametrize("codec", ["raw", "png", "jpg"])
@pytest.mark.parametrize("room", ROOM)
def test_a_file_that_may_not_grow(shards, tmp_path, codec, room):
    with files_of_at_most(room), pytest.raises(UserError, match=r"out: cannot be written .*make room"):
        pack(shards["raw"], tmp_path / "out", codec=codec, chunks_per_shard=3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("room", ROOM)
def test_shards_to_be_replaced_stay_where_there_is_no_room(shards, tmp_path, room):
    out = shutil.copytree(shards["png"], tmp_path / "out")
    with files_of_at_most(room), pytest.raises(UserError, match=r"out: cannot be written"):
        pack(shards["raw"], out, force=True)
    assert os.listdir(tmp_path) == ["out"]
    assert "all whole" in inspect(out, deep=True)


@pytest.mark.parametrize("blocks", [1, 2, 30, 90, 160])
def test_a_disk_that_is_full(shards, tmp_path, blocks):
    """A small file system in memory, where it is permitted to mount one; a block is 4096 bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size={blocks * 4096}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here; quotas are tested all the same")
    try:
        with pytest.raises(UserError, match=r"out: cannot be written \(.*No space left on device.*make room"):
            pack(shards["raw"], disk / "out", chunks_per_shard=3)
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


COUNT = len(SHARD_CASES) + len(RECORDING_CASES) + len(SHARD_MOMENTS) + len(RECORDING_MOMENTS) + 4 * len(ROOM)


@pytest.mark.parametrize("count", [COUNT], ids=lambda count: f"{count} cases")
def test_the_corpus_is_large(count):
    assert count >= 200
    names = [case.name for case in (*SHARD_CASES, *RECORDING_CASES, *SHARD_MOMENTS, *RECORDING_MOMENTS)]
    assert len(set(names)) == len(names)
