"""One run a folder; a lock that nobody holds any more is taken over."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from aime_fast.errors import UserError
from aime_fast.training.run import lock as run_lock
from aime_fast.training.run.lock import RunLock


@pytest.fixture
def quick(monkeypatch):
    """Beats and watching in hundredths of a second."""
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(run_lock, "WATCH_SECONDS", 0.3)


def foreign(folder, **changes):
    """A lock of another owner."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": 1.0} | changes
    (folder / "lock").write_text(json.dumps(owner))


def test_a_second_run_is_refused_until_the_first_gives_back(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    assert first.acquire() is None
    with pytest.raises(UserError, match=rf"being written by process {os.getpid()} on {socket.gethostname()}"):
        second.acquire()
    second.release()
    assert (tmp_path / "lock").exists(), "only its owner gives it back"
    first.release()
    assert second.acquire() is None
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_is_noticed(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from aime_fast.training.run.lock import RunLock;"
        "RunLock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    lock = RunLock(tmp_path)
    assert "ended without a word" in lock.acquire()
    lock.release()


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path):
    foreign(tmp_path, started=1.0)  # this process's number, taken by one that began in 1970
    lock = RunLock(tmp_path)
    assert lock.acquire() is not None
    lock.release()


def test_an_owner_on_another_machine_lives_while_its_lock_is_touched(tmp_path, quick):
    foreign(tmp_path, host="elsewhere")
    done = threading.Event()

    def beat():
        while not done.wait(0.01):
            os.utime(tmp_path / "lock")

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(UserError, match="on elsewhere"):
            RunLock(tmp_path).acquire()
    finally:
        done.set()
        beating.join()
    lock = RunLock(tmp_path)
    assert "elsewhere ended without a word" in lock.acquire()
    lock.release()


def test_an_owner_touches_its_lock(tmp_path, quick):
    lock = RunLock(tmp_path)
    lock.acquire()
    assert run_lock._beats(lock.path)
    lock.release()
