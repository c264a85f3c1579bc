"""How the process treats memory that a step has freed."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_GROW_BY = 256 << 20


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks for the next step; False for another C library. Call it before training.

    Otherwise glibc maps and unmaps every tensor above 32 MB again, and a step on a CPU spends up to half its time in
    the kernel, zeroing pages (docs/performance.md). The process then never shrinks below its peak memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _GROW_BY))
    return all([mallopt(name, value) == 1 for name, value in settings])
