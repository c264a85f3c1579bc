"""Files of arrays: HDF5, `.npz` (Dreamer and V-D4RL write one for each episode) and `.pt`.

Columns are `observations|observation_pixels|pixels` uint8 [N,H,W,3], `actions|action` [N,A], `rewards|reward` [N] and
`dones|is_last|terminals` [N]; Dreamer's are `image`, `action`, `reward`. Episodes end where `episode_ends` says, or at
each done. `actions[t]` is taken after frame t. In files with time steps of dm_env (`step_type`, `is_first` or
`discount`, as in V-D4RL) it led to frame t, and is shifted. `env` (an attribute or a string) names the task.
"""

import functools
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.lib import format as npy

from aime_fast.data.sources.columns import Arrays
from aime_fast.data.sources.hdf5_groups import check_filters, grouped_columns
from aime_fast.data.sources.source import readable
from aime_fast.errors import UserError


@contextmanager
def open_hdf5(path: Path) -> Iterator[Arrays]:
    """The top-level data sets of an HDF5 file, and its columns in groups."""
    with readable(path, "HDF5"), h5py.File(path, "r") as file:
        environment = file.attrs.get("env", file.attrs.get("environment"))
        if isinstance(environment, bytes):  # a string of fixed length, as C and MATLAB write it
            environment = environment.decode()
        # `get` gives None for a link without a target.
        items = {name: file.get(name) for name in file}
        arrays = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset) and item.ndim > 0}
        for array in arrays.values():
            check_filters(array)
        grouped, task, notes = grouped_columns(file, path)
        yield Arrays({**arrays, **grouped}, environment if isinstance(environment, str) else task, notes)


@contextmanager
def open_npz(path: Path) -> Iterator[Arrays]:
    """The arrays of an `.npz` file. Arrays of Python objects, which would run code, are refused."""
    with readable(path, "npz"), zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        arrays = {name.removesuffix(".npy"): _Member(archive, name) for name in members}
        yield Arrays({name: array for name, array in arrays.items() if array.ndim}, None)


class _Member:
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
        if self.dtype.hasobject:
            where = f"{self._archive.filename}: {self._member}"
            raise UserError(f"{where} holds Python objects, which could run code; save it as an array of numbers")
        with self._archive.open(self._member) as stream:
            return npy.read_array(stream, allow_pickle=False)[rows]


@contextmanager
def open_torch(path: Path) -> Iterator[Arrays]:
    """The tensors of a dict in a `.pt` file; `weights_only=True` never runs code from it."""
    try:
        change = path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    yield _load_torch(path, change)


@functools.lru_cache(maxsize=1)
def _load_torch(path: Path, change: int) -> Arrays:
    """The content as of the time `change`, mapped where torch can. Cached, because episodes are read one by one."""
    import torch

    try:
        mapped = zipfile.is_zipfile(path)
        # Torch does not check a mapped file, so its checksums are compared here.
        if mapped and (member := zipfile.ZipFile(path).testzip()) is not None:
            raise UserError(f"{path}: damaged (wrong crc32 of {member}); copy it again")
        with warnings.catch_warnings():
            # Torch first warns of an unknown pickle version and then refuses it; one message is enough.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    # A damaged pickle can raise anything: KeyError, IndexError, AssertionError, struct.error were all observed.
    except Exception as error:
        # The text of an UnpicklingError advises to turn the protection off, so only its kind is shown.
        reason = str(error) if isinstance(error, OSError) else type(error).__name__
        raise UserError(f"{path}: damaged, or not a torch file of plain tensors ({reason}); save a dict") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    environment = content.get("env")
    arrays = {key: _as_numpy(value, path) for key, value in tensors.items() if value.ndim}
    return Arrays(arrays, environment if isinstance(environment, str) else None)


def _as_numpy(tensor: Any, path: Path) -> np.ndarray:
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path}: a tensor of {tensor.dtype} has no NumPy form; save plain dense tensors") from error
