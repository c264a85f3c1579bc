"""HDF5 recordings: one file with all episodes end to end."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from aime_fast.data.episode import Episode
from aime_fast.data.sources.columns import Source, episode_ends, find_columns, read_episodes
from aime_fast.errors import UserError

# What h5py raises, by place of the damage, for a file that HDF5 cannot make sense of.
BROKEN = (OSError, RuntimeError, KeyError, ValueError)


def open_hdf5(path: Path) -> Source:
    """Open a file with data sets `observations|observation_pixels|pixels` uint8 [N,64,64,3], `actions|action` [N,A],
    `rewards|reward` [N] and `dones|is_last|terminals` [N]; episodes end where `episode_ends` says, else at each done.

    Action convention of the file: `actions[t]` is taken after frame t. The attribute `env` names the task.
    `UserError` when the file is not HDF5, or lacks a data set, or its lengths disagree.
    """
    try:
        with h5py.File(path, "r") as file:
            datasets = _datasets(file)
            columns = find_columns(datasets, str(path))
            ends = datasets["episode_ends"][:] if "episode_ends" in datasets else None
            ends = episode_ends(columns, ends, str(path))
            environment = file.attrs.get("env", file.attrs.get("environment"))
            if isinstance(environment, bytes):  # a string of fixed length, as C and MATLAB write them
                environment = environment.decode()
    except BROKEN as error:
        raise UserError(f"{path}: cannot be read as HDF5 ({error}); record or copy it again") from error

    def read() -> Iterator[Episode]:
        try:
            with h5py.File(path, "r") as file:
                yield from read_episodes(find_columns(_datasets(file), str(path)), ends, str(path))
        except BROKEN as error:
            raise UserError(f"{path}: damaged HDF5 data ({error}); record or copy it again") from error

    lengths = np.diff(ends, prepend=0).tolist()
    return Source(str(path), environment if isinstance(environment, str) else None, lengths, read)


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Top-level data sets that have rows; `get` passes over links that lead nowhere."""
    items = {name: file.get(name) for name in file}
    return {name: item for name, item in items.items() if isinstance(item, h5py.Dataset) and item.ndim > 0}
