"""Packing by several processes, and packing that is interrupted: the same bytes, or nothing under the final name."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from made_recordings import LENGTHS, columns, write_hdf5
from test_pack import files

from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack, shard_spans
from aime_fast.errors import UserError


def test_spans_hold_every_episode_once_in_order():
    assert shard_spans([40, 16, 33, 5, 17], 1) == [range(0, 1), range(1, 2), range(2, 3), range(3, 4), range(4, 5)]
    assert shard_spans([40, 16, 33, 5, 17], 4) == [range(0, 2), range(2, 4), range(4, 5)]
    assert shard_spans([40, 16, 33, 5, 17], 1000) == [range(0, 5)]


def test_the_number_of_workers_does_not_change_a_byte(recording, tmp_path):
    alone = pack(recording, tmp_path / "alone", codec="jpg", chunks_per_shard=2)
    together = pack(recording, tmp_path / "together", codec="jpg", chunks_per_shard=2, workers=2)
    assert len(list(alone.glob("*.tar"))) == 3
    assert files(alone) == files(together)


def test_a_worker_s_error_names_the_episode_and_leaves_nothing(tmp_path):
    bad = columns()
    bad["actions"][sum(LENGTHS) - 1] = np.nan
    path = write_hdf5(tmp_path / "r.h5", bad)
    with pytest.raises(UserError, match=r"r.h5, episode 4: actions hold NaN or infinity at frame 16"):
        pack(path, tmp_path / "out", chunks_per_shard=1, workers=2)
    assert os.listdir(tmp_path) == ["r.h5"]


def test_a_full_disk_leaves_nothing_and_keeps_what_was(recording, tmp_path):
    """The system refuses to let a file grow, as it does where no room is left."""
    out = pack(recording, tmp_path / "out", codec="jpg")
    before, limits = files(out), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limits[1]))
    try:
        for target, force in ((out, True), (tmp_path / "new", False)):
            with pytest.raises(UserError, match=r"cannot be written .*make room"):
                pack(recording, target, force=force)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(out) == before
    assert sorted(os.listdir(tmp_path)) == ["out", "recording.h5"]


KILLED = """
import os, signal, sys
from aime_fast.data.packing.pack import pack
from aime_fast.data.packing.workers import WorkerPool

receive = WorkerPool._receive
def receive_and_die(pool, connection):
    message = receive(pool, connection)
    if message and message[1]:  # a shard is written
        os.kill(os.getpid(), signal.SIGKILL)
    return message

WorkerPool._receive = receive_and_die
pack(sys.argv[1], sys.argv[2], codec="png", chunks_per_shard=1, workers=2)
"""


def test_a_killed_pack_leaves_no_worker_and_is_cleared_by_the_next(recording, tmp_path):
    """The pipes close, and `run` returns, only when the workers are gone too."""
    run = subprocess.run([sys.executable, "-c", KILLED, recording, tmp_path / "out"], capture_output=True, timeout=120)
    assert run.returncode == -9, run.stderr
    assert not (tmp_path / "out").exists()
    (left,) = [path for path in tmp_path.iterdir() if path.name.startswith(".out.packing-")]
    assert list(left.glob("*.tar"))
    out = pack(recording, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out", "recording.h5"]
    assert "all whole" in inspect(out, deep=True)

    # Killed between its two renames: what had been set aside is restored before anything else happens.
    out.rename(left.with_name(f"{left.name}-old"))
    with pytest.raises(UserError, match="exists already"):
        pack(recording, out)
    assert sorted(os.listdir(tmp_path)) == ["out", "recording.h5"]


def test_impossible_numbers_are_refused(recording, tmp_path):
    with pytest.raises(UserError, match="workers is 0"):
        pack(recording, tmp_path / "out", workers=0)
