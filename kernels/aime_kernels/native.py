"""C++ for CPUs: built by the machine's own compiler at first use, kept in the user's cache folder."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_LEVELS = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}
"""Torch's name for a CPU's vector instructions, and the compiler's name for such CPUs."""
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_SECONDS = 120
"""A build takes two or three seconds; a compiler that needs this long hangs."""


def compiler() -> str | None:
    """The C++ compiler: the one that `CXX` names, else g++ or clang++; None where there is none."""
    given = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [given] if given else ["g++", "clang++"])), None)


@functools.cache
def library(source: Path) -> ctypes.CDLL | str:
    """The shared library of a C++ file, built now unless this user has built it for this kind of CPU.

    The reason why there is none: no compiler, a failed build, or a CPU without AVX2, where torch's operators are
    faster. A process tries once.
    """
    level, found = _LEVELS.get(torch.backends.cpu.get_cpu_capability()), compiler()
    if level is None:
        return "the CPU has no AVX2"
    if found is None:
        return "no C++ compiler; install g++"
    command = [found, *_FLAGS, f"-march={level}"]
    key = hashlib.sha256(b"\0".join([source.read_bytes(), *map(str.encode, command)])).hexdigest()
    target = _folder() / f"{source.parent.name}-{key[:16]}.so"
    try:
        if not target.exists() and (fault := _build([*command, str(source)], target)):
            return fault
        # A library built with g++ uses the OpenMP runtime that torch has loaded: both are named libgomp.so.1.
        return ctypes.CDLL(str(target))
    except OSError as error:
        return f"{target} cannot be loaded ({error}); delete it"


def _folder() -> Path:
    """The user's cache folder; if it cannot be written, a temporary one for this process."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aime_kernels" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="aime_kernels-"))


def _build(command: list[str], target: Path) -> str | None:
    """Compile to `target` in one step, as other processes may build the same file. Why it failed, or None."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        try:
            run = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{command[0]} does not run ({error})"
        if run.returncode:
            return f"{command[0]} fails: {(run.stderr.strip() or 'no message').splitlines()[0]}"
        os.replace(made, target)
        return None
