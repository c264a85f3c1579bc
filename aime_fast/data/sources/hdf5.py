"""HDF5 recordings: files with episodes end to end, or one in each."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py

from aime_fast.data.sources.columns import columns_source
from aime_fast.data.sources.source import Source
from aime_fast.errors import UserError

# What h5py raises, by place of the damage, for a file that HDF5 cannot make sense of.
BROKEN = (OSError, RuntimeError, KeyError, ValueError)


def open_hdf5(where: Path, paths: Sequence[Path], camera: str | None = None) -> Source:
    """Open files with data sets `observations|observation_pixels|pixels` uint8 [N,64,64,3], `actions|action` [N,A],
    `rewards|reward` [N] and `dones|is_last|terminals` [N]; episodes end where `episode_ends` says, else at each done.

    Action convention of a file: `actions[t]` is taken after frame t; in one with time steps of dm_env (`step_type`,
    `is_first` or `discount`, as V-D4RL has them) it led to frame t, and is shifted. The attribute `env` names the task.
    `UserError` when a file is not HDF5, or lacks a data set, or its lengths disagree.
    """
    return columns_source("HDF5", where, paths, _open, camera)


@contextmanager
def _open(path: Path) -> Iterator[tuple[Mapping[str, h5py.Dataset], str | None]]:
    try:
        with h5py.File(path, "r") as file:
            environment = file.attrs.get("env", file.attrs.get("environment"))
            if isinstance(environment, bytes):  # a string of fixed length, as C and MATLAB write them
                environment = environment.decode()
            yield _datasets(file), environment if isinstance(environment, str) else None
    except BROKEN as error:
        raise UserError(f"{path}: cannot be read as HDF5 ({error}); record or copy it again") from error


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Top-level data sets that have rows; `get` passes over links that lead nowhere."""
    items = {name: file.get(name) for name in file}
    return {name: item for name, item in items.items() if isinstance(item, h5py.Dataset) and item.ndim > 0}
