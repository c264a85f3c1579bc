"""How threads of OpenMP wait for each other: they soon fall asleep, unless the environment says otherwise.

A thread that spins while it waits keeps its core from another process, which then keeps the thread that all wait for
from its own: one busy core costs a factor of three to twenty. A thread that sleeps at once must be woken for every
loop, which costs a fifth of the speed of idle cores (docs/performance.md). So threads spin for some microseconds, and
then sleep. The libraries read these variables when they are loaded, with torch, so a command calls
`sleep_while_waiting` before that.
"""

import os
import sys

BLAS = "OPENBLAS_NUM_THREADS"
"""NumPy's own threads, which always spin. It has small products only, so it gets one thread."""
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "0"}
"""GNU's library looks 2,000 times whether the others are ready; Intel's counts in milliseconds. With any of them set,
somebody has chosen."""


def sleep_while_waiting() -> None:
    """Choose for this process and those that it starts, if nobody has chosen and torch is not loaded yet."""
    if not chosen() and "torch" not in sys.modules:
        os.environ |= WAITING
    os.environ.setdefault(BLAS, "1")


def chosen() -> bool:
    """Whether the environment says how threads wait."""
    return any(name in os.environ for name in WAITING)
