"""Probes that fail in every way a native library has."""

import ctypes
import os
import subprocess
import sys

from aime_fast.doctor.checks import Result, ok, warning


def well():
    print("a library that chats")
    os.system("echo and its program too")
    return ok("well")


def poor():
    return Result("", "failed", "poor", "mend it")


def limited():
    return warning("slow", "speed it up")


def crash():
    ctypes.string_at(0)


def abort():
    os.abort()


def hang():
    # A helper that outlives its probe would hold the pipe, and the doctor with it.
    subprocess.run([sys.executable, "-c", "import signal; signal.pause()"])


def missing():
    import no_such_library  # noqa: F401


def silent():
    os._exit(3)
