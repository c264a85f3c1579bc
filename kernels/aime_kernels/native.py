"""C++ for CPUs: built by the machine's own compiler when first needed, kept in the user's cache."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_LEVELS = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}
"""What torch calls a CPU's vector instructions, and the compiler's word for CPUs that have them."""
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")
_SECONDS = 120
"""A build takes two or three; a compiler that needs longer hangs."""


class NativeUnavailable(Exception):
    """This machine builds or loads no native code; the message says why."""


def compiler() -> str | None:
    """The C++ compiler: what `CXX` names, else g++ or clang++; None where there is none."""
    given = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [given] if given else ["g++", "clang++"])), None)


def library(source: Path) -> ctypes.CDLL:
    """The shared library of a C++ file, built now if this user has not built it for this kind of CPU.

    Raises `NativeUnavailable`: no compiler, a build that fails, or a CPU whose vectors are too short to gain by it
    (less than AVX2; torch's operators are faster there). A process tries once.
    """
    found = attempt(source)
    if isinstance(found, str):
        raise NativeUnavailable(found)
    return found


@functools.cache
def attempt(source: Path) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        return _opened(source)
    except NativeUnavailable as error:
        return str(error)


def _opened(source: Path) -> ctypes.CDLL:
    level = _LEVELS.get(torch.backends.cpu.get_cpu_capability())
    if level is None or platform.machine().lower() not in ("x86_64", "amd64"):
        raise NativeUnavailable("the CPU has no AVX2")
    found = compiler()
    if found is None:
        raise NativeUnavailable("no C++ compiler; install g++")
    flags = [*_FLAGS, f"-march={level}"]
    key = hashlib.sha256(b"\0".join([source.read_bytes(), found.encode(), *map(str.encode, flags)])).hexdigest()
    target = _folder() / f"{source.parent.name}-{key[:16]}.so"
    if not target.exists():
        _build([found, *flags, str(source)], target)
    # With g++ its OpenMP runtime is the one that torch has loaded: both go by the name libgomp.so.1.
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NativeUnavailable(f"{target} cannot be loaded ({error}); delete it") from error


def _folder() -> Path:
    """The user's cache, or where that cannot be written a folder of this process."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aime_kernels" / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="aime_kernels-"))


def _build(command: list[str], target: Path) -> None:
    """Compile to `target`, which is whole or absent: other processes may be building the same."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        try:
            run = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NativeUnavailable(f"{command[0]} does not run ({error})") from error
        if run.returncode:
            raise NativeUnavailable(f"{command[0]} fails: {(run.stderr.strip() or 'no message').splitlines()[0]}")
        os.replace(made, target)
