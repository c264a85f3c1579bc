"""Torch recordings: a `.pt` file of tensors."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aime_fast.data.sources.columns import Source, episode_ends, find_columns, read_episodes
from aime_fast.errors import UserError


def open_torch(path: Path) -> Source:
    """Open a dict of tensors under the names and shapes of `open_hdf5`; the string `env` names the task.

    The file is loaded with `weights_only=True`, which never runs code from it. `UserError` when it holds anything but
    tensors and strings, or lacks a column, or its lengths disagree.
    """
    try:
        with warnings.catch_warnings():
            # Of a pickle too new or too old torch first warns and then refuses; one message is enough.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle leads the unpickler anywhere: KeyError, IndexError, AssertionError, struct.error were all seen.
    except Exception as error:
        # Of an UnpicklingError only the kind is told: its text advises turning the protection off.
        reason = str(error) if isinstance(error, OSError) else type(error).__name__
        raise UserError(
            f"{path}: damaged, or not a torch file of plain tensors ({reason}); save a dict of tensors"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    arrays = {key: _array(value, path) for key, value in content.items() if _is_column(key, value)}
    arrays = {key: array for key, array in arrays.items() if array.ndim}
    columns = find_columns(arrays, str(path))
    ends = episode_ends(columns, arrays.get("episode_ends"), str(path))
    environment = content.get("env")
    lengths = np.diff(ends, prepend=0).tolist()
    return Source(
        str(path),
        environment if isinstance(environment, str) else None,
        lengths,
        lambda: read_episodes(columns, ends, str(path)),
    )


def _is_column(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor)


def _array(tensor: torch.Tensor, path: Path) -> np.ndarray:
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path}: a tensor of {tensor.dtype} has no NumPy form; save plain dense tensors") from error
