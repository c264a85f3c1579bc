"""HDF5 recordings: files with one or more episodes, end to end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py

from aime_fast.data.sources.columns import columns_source
from aime_fast.data.sources.source import Pictures, Source, readable


def open_hdf5(where: Path, paths: Sequence[Path], pictures: Pictures) -> Source:
    """Open files with data sets `observations|observation_pixels|pixels` uint8 [N,H,W,3], `actions|action` [N,A],
    `rewards|reward` [N] and `dones|is_last|terminals` [N]. Episodes end where `episode_ends` says, or at each done.

    `actions[t]` is taken after frame t. In files with time steps of dm_env (`step_type`, `is_first` or `discount`, as
    in V-D4RL) it led to frame t, and is shifted. The attribute `env` names the task. `UserError` if a file is not
    HDF5, a data set is missing, or lengths differ.
    """
    return columns_source("HDF5", where, paths, _open, pictures)


@contextmanager
def _open(path: Path) -> Iterator[tuple[Mapping[str, h5py.Dataset], str | None]]:
    with readable(path, "HDF5"), h5py.File(path, "r") as file:
        environment = file.attrs.get("env", file.attrs.get("environment"))
        if isinstance(environment, bytes):  # a string of fixed length, as C and MATLAB write it
            environment = environment.decode()
        # `get` gives None for a link without a target.
        items = {name: file.get(name) for name in file}
        arrays = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset) and item.ndim > 0}
        yield arrays, environment if isinstance(environment, str) else None
