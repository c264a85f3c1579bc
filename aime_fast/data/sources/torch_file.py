"""Torch recordings: a `.pt` file of tensors."""

import functools
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.sources.columns import columns_source
from aime_fast.data.sources.source import Pictures, Source
from aime_fast.errors import UserError


def open_torch(where: Path, paths: Sequence[Path], pictures: Pictures) -> Source:
    """Open dicts of tensors with the names and shapes of `open_hdf5`; the string `env` names the task.

    `weights_only=True` never runs code from a file. Files are mapped, not read, where torch can. `UserError` if a
    file holds anything but tensors and strings, a column is missing, or lengths differ.
    """
    return columns_source("torch", where, paths, _open, pictures)


@contextmanager
def _open(path: Path) -> Iterator[tuple[Mapping[str, np.ndarray], str | None]]:
    try:
        change = path.stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    yield _load(path, change)


@functools.lru_cache(maxsize=1)
def _load(path: Path, change: int) -> tuple[dict[str, np.ndarray], str | None]:
    """Arrays and task of the file as of the time `change`. Cached, because episodes are read one by one."""
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
        raise UserError(
            f"{path}: damaged, or not a torch file of plain tensors ({reason}); save a dict of tensors"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    arrays = {key: _array(value, path) for key, value in tensors.items() if value.ndim}
    environment = content.get("env")
    return arrays, environment if isinstance(environment, str) else None


def _array(tensor: Any, path: Path) -> np.ndarray:
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path}: a tensor of {tensor.dtype} has no NumPy form; save plain dense tensors") from error
