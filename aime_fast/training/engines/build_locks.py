"""Locks that killed builds of torch extensions leave behind: torch waits for them for ever."""

import os
from pathlib import Path

import psutil

from aime_fast.errors import UserError


def refuse_stale_build_locks() -> None:
    """`UserError` where a build's lock lies in torch's extension folder that no process here holds open."""
    held: set[Path] | None = None
    for lock in sorted(_extensions().glob("**/lock")):
        held = _open_files() if held is None else held
        if lock.resolve() not in held:
            raise UserError(
                f"{lock} was left by a build of an extension that was killed, and would be waited for without end; "
                "delete it, unless another machine that shares this folder is building at this moment"
            )


def _extensions() -> Path:
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"


def _open_files() -> set[Path]:
    """What the processes that we may look into have open."""
    found = set()
    for process in psutil.process_iter():
        try:
            found |= {Path(file.path) for file in process.open_files()}
        except psutil.Error:
            continue
    return found
