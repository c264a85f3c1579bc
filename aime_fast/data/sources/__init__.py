"""One reader a format, each giving `Episode` records."""

import os
from pathlib import Path

from aime_fast.data.sources.columns import Source
from aime_fast.data.sources.hdf5 import open_hdf5
from aime_fast.data.sources.torch_file import open_torch
from aime_fast.errors import UserError

__all__ = ["Source", "open_source"]

READERS = {".h5": open_hdf5, ".hdf5": open_hdf5, ".pt": open_torch}


def open_source(path: Path) -> Source:
    """Open a recording, its reader chosen by the file's ending; `UserError` for a missing or unknown file."""
    if not os.path.exists(path):  # unlike Path.exists, False for a name too long
        raise UserError(f"{path}: no such file or folder; check the path")
    reader = READERS.get(path.suffix.lower())
    if reader is None or path.is_dir():
        raise UserError(f"{path}: not a recording that can be read; give one ending in {', '.join(READERS)}")
    return reader(path)
