"""NumPy recordings: `.npz` files of columns, as Dreamer and V-D4RL write one for each episode."""

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from aime_fast.data.sources.columns import columns_source
from aime_fast.data.sources.source import Pictures, Source, readable


def open_npz(where: Path, paths: Sequence[Path], pictures: Pictures) -> Source:
    """Open files with arrays of the names and shapes of `open_hdf5`; Dreamer's are `image`, `action`, `reward`.

    In a file with `is_first`, `step_type` or `discount`, action and reward led to their frame, and are shifted.
    Arrays of Python objects, which would run code, are refused. `UserError` for any other file.
    """
    return columns_source("npz", where, paths, _open, pictures)


class _Array:
    """One array of an archive. Shape and dtype are read at once, the values when it is sliced."""

    def __init__(self, archive: zipfile.ZipFile, member: str) -> None:
        self._archive, self._member = archive, member
        with archive.open(member) as stream:
            read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
            self.shape, _, self.dtype = read(stream)
        self.ndim = len(self.shape)
        # A forged header must not make NumPy allocate.
        if math.prod(self.shape) * self.dtype.itemsize > archive.getinfo(member).file_size:
            raise ValueError(f"{member} claims shape {list(self.shape)}, more than the file holds")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        with self._archive.open(self._member) as stream:
            return npy.read_array(stream, allow_pickle=False)[rows]


@contextmanager
def _open(path: Path) -> Iterator[tuple[Mapping[str, _Array], None]]:
    with readable(path, "npz"), zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        arrays = {name.removesuffix(".npy"): _Array(archive, name) for name in members}
        yield {name: array for name, array in arrays.items() if array.ndim}, None
