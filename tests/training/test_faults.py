"""A rank that dies or hangs ends the job in bounded time, with that rank's own account."""

import faulthandler
import json
from pathlib import Path

import pytest
from launching import run_ranks
from recording import tiny_options, write_recording

from aime_fast.training.run.watchdog import Watchdog

pytestmark = pytest.mark.long


def faulty(tmp_path, fault):
    """What the two ranks of a run say and return when rank 1 fails at step 3."""
    options = tiny_options(write_recording(tmp_path / "recording.pt"), tmp_path / "run", ds_config="zero2")
    return run_ranks(2, "fault_worker.py", fault, json.dumps(options))


def place_of_the_hang():
    """The line of the worker that waits forever, as a stack shows it."""
    lines = Path(__file__).with_name("fault_worker.py").read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if "threading.Event().wait()" in line)
    return f'fault_worker.py", line {number} in failing'


@pytest.mark.slow
def test_a_rank_that_dies_shows_its_error_and_the_other_does_not_wait(tmp_path):
    (other, other_code), (failing, code) = faulty(tmp_path, "raise")
    assert "OSError: the disk of this rank has melted" in failing
    assert (other_code, code) == (1, 1)
    assert "melted" not in other


def test_a_rank_that_hangs_ends_the_job_and_each_rank_says_where_it_is(tmp_path):
    (other, other_code), (hanging, code) = faulty(tmp_path, "hang")
    assert (other_code, code) == (1, 1)
    assert "rank 1 of 2" in hanging
    assert "no progress for 4 s in phase `step 3`" in hanging
    assert "Timeout (0:00:04.500000)!" in hanging
    assert place_of_the_hang() in hanging
    # It gives its own account too, unless the other is gone before its own time is up.
    assert "rank 0 of 2" in other or "Connection closed by peer" in other or "Connection reset by peer" in other
    assert place_of_the_hang() not in other


def test_a_lone_process_is_not_watched(monkeypatch):
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *a, **k: pytest.fail("it is watched"))
    with Watchdog(0, 1, 0.0) as watchdog:
        assert list(watchdog.beating([1, 2], "work")) == [1, 2]
