"""One run at a time writes to a folder: a lock file that names its owner and that the owner keeps touching."""

import socket
from pathlib import Path

import psutil
from filelock import OwnerRecord, SoftFileLease, Timeout

from aime_fast.errors import UserError

HEARTBEAT_SECONDS = 5.0
"""Interval at which the owner touches its lock."""
LEASE_SECONDS = 30.0
"""A lock on another machine is stale if it stays untouched this long."""


class RunLock:
    """The file `lock` in a run's folder, held from `acquire` to `release`.

    A lock of a dead process on this machine is taken over at once, one of another machine when its time stamp has not
    changed for `LEASE_SECONDS` of this process's own clock: machines need not agree on the time.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._lease = SoftFileLease(self.path, lease_duration=LEASE_SECONDS, heartbeat_interval=HEARTBEAT_SECONDS)

    def acquire(self) -> str | None:
        """Take the lock; return a message if a stale lock was taken over. `UserError` if another run holds it."""
        previous = self._lease.owner
        try:
            wait = LEASE_SECONDS + HEARTBEAT_SECONDS
            self._lease.acquire(timeout=wait, cancel_check=lambda: _running_here(self._lease.owner))
        except Timeout:
            owner = _named(self._lease.owner or previous)
            raise UserError(f"{self.path.parent} is in use by {owner}; wait for it, or give another --out") from None
        return f"{_named(previous)} ended without releasing its lock; took the lock over" if previous else None

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        self._lease.release()


def _running_here(owner: OwnerRecord | None) -> bool:
    if owner is None or _host(owner) != socket.gethostname():
        return False
    try:
        return psutil.Process(owner.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _host(owner: OwnerRecord) -> str:
    return owner.hostname.partition("?")[0]  # filelock appends the PID namespace of a container


def _named(owner: OwnerRecord | None) -> str:
    return f"process {owner.pid} on {_host(owner)}" if owner else "another process"
