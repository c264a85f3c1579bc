"""A look at a file before it is opened."""

import stat
from pathlib import Path

from aime_fast.errors import UserError


def check_file(path: Path, size: int | None = None) -> Path:
    """`path`; `UserError` unless it is a file, with `size` bytes where that is known.

    A named pipe would be waited for without end, and a device read without end.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy or pack it again") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: is not a file; copy or pack it again")
    if size is not None and status.st_size != size:
        raise UserError(f"{path}: has {status.st_size} bytes, the manifest says {size}; copy or pack it again")
    return path
