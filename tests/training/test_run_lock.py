"""One run per folder; a lock that nobody holds any more is taken over."""

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
    """Heartbeats and leases in hundredths of a second."""
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(run_lock, "LEASE_SECONDS", 0.5)


def foreign(folder, host=None, start=1, duration=0.5):
    """A lock of another owner, as filelock writes it."""
    lines = ["filelock/2", f"pid={os.getpid()}", f"host={host or socket.gethostname()}", "mode=lease", "token=abc"]
    text = "\n".join([*lines, f"duration={duration}", f"start={start}", ""])
    (folder / "lock").write_text(text)


def test_a_second_run_is_refused_at_once_until_the_first_releases(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    assert first.acquire() is None
    with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on {socket.gethostname()}; wait"):
        second.acquire()
    second.release()
    assert (tmp_path / "lock").exists(), "only its owner releases it"
    first.release()
    assert second.acquire() is None
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_owner_is_noticed_at_once(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from aime_fast.training.run.lock import RunLock;"
        "lock = RunLock(Path(sys.argv[1])); lock.acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    lock = RunLock(tmp_path)
    assert "ended without releasing its lock" in lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_number_that_was_reused_is_no_owner(tmp_path, quick):
    foreign(tmp_path, start=1)  # this process's number, with another start
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
        with pytest.raises(UserError, match="on elsewhere; wait for it"):
            RunLock(tmp_path).acquire()
    finally:
        done.set()
        beating.join()
    lock = RunLock(tmp_path)
    assert "on elsewhere ended without releasing" in lock.acquire()
    lock.release()


def test_the_owner_keeps_touching_its_lock(tmp_path, quick):
    lock = RunLock(tmp_path)
    lock.acquire()
    before = lock.path.stat().st_mtime_ns
    assert any(lock.path.stat().st_mtime_ns != before for _ in range(100) if not threading.Event().wait(0.02))
    lock.release()


def test_a_lock_file_of_an_older_version_does_not_block_the_folder(tmp_path):
    (tmp_path / "lock").write_text('{"pid": 1, "host": "elsewhere", "started": 1.0}')
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
