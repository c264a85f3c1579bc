"""Checks on a file before it is opened, and the place of the shipped sample."""

import stat
from pathlib import Path

from aime_fast.errors import UserError

POINTER_START, LARGEST_POINTER = b"version https://git-lfs", 1024
"""How the text file begins that Git leaves in place of a large one, and its largest size in bytes."""

SAMPLE = Path(__file__).with_name("sample")
"""The folder of shards that ships with the project."""


def check_file(path: Path, size: int | None = None) -> Path:
    """Return `path`; `UserError` unless it is a regular file of `size` bytes (None: any size)."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy or pack it again") from error
    # Opening a named pipe blocks, and reading a device may never end.
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is not a file; copy or pack it again")
    refuse_pointer(path)
    if size is not None and status.st_size != size:
        raise UserError(f"{path}: has {status.st_size} bytes, the manifest says {size}; copy or pack it again")
    return path


def refuse_pointer(path: Path) -> None:
    """Raise `UserError` if `path` is only Git's pointer to a large file. What can't be read is left to its reader."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_POINTER:
            return
        with path.open("rb") as file:
            start = file.read(len(POINTER_START))
    except OSError:
        return
    if start == POINTER_START:
        raise UserError(f"{path}: a Git LFS pointer, not the data; run `git lfs pull` in its repository")
