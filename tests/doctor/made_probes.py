"""Probes that fail in every way a native library has."""

import ctypes
import os
import subprocess
import sys

from aime_fast.doctor.checks import Finding


def well():
    print("a library that chats")
    os.system("echo and its program too")
    return Finding("well", "")


def poor():
    return Finding("poor", "mend it")


def limited():
    return Finding("slow", "speed it up", limits=True)


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
