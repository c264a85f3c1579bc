"""How threads of OpenMP wait for each other: asleep, unless the environment says otherwise.

A thread that spins while it waits keeps its core from another process, which then keeps the thread that all wait for
from its own: one busy core costs a factor of twenty (docs/performance.md). The libraries read these variables when
they are loaded, with torch, so a command calls `sleep_while_waiting` before that.
"""

import os
import sys

BLAS = "OPENBLAS_NUM_THREADS"
"""NumPy's own threads, which always spin. It has small products only, so it gets one thread."""
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""With any of them set, somebody has chosen."""


def sleep_while_waiting() -> None:
    """Choose sleep for this process and those that it starts, if nobody has chosen and torch is not loaded yet."""
    if not chosen() and "torch" not in sys.modules:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    os.environ.setdefault(BLAS, "1")


def chosen() -> bool:
    """Whether the environment says how threads wait."""
    return any(name in os.environ for name in CHOICES)
