"""Episodes from columns: arrays that hold every frame of every episode one after another."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aime_fast.data.episode import Episode
from aime_fast.errors import UserError

KEYS = {
    "observations": ("observations", "observation_pixels", "pixels"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "dones": ("dones", "is_last", "terminals"),
}


@dataclass(frozen=True)
class Source:
    """A recording that is read an episode at a time."""

    where: str
    """File or folder, for messages."""
    environment: str | None
    """Task that was recorded, where the recording says so."""
    lengths: list[int]
    """Frames of each episode."""
    read: Callable[[], Iterator[Episode]]
    """Starts at the first episode each time it is called."""
    collection: dict[str, Any] | None = None
    """How the episodes were recorded, where this project recorded them."""


def find_columns(names: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The columns of `names` under this project's names; `UserError` when one is missing (`dones` may be)."""
    found = {}
    for column, keys in KEYS.items():
        key = next((key for key in keys if key in names), None)
        if key is not None:
            found[column] = names[key]
        elif column != "dones":
            has = ", ".join(sorted(names)) or "nothing"
            raise UserError(f"{where}: no {column} ({' or '.join(keys)}); it holds {has}. Rename or add the column")
    if "terminals" in names:
        found["terminals"] = names["terminals"]
    return found


def episode_ends(columns: Mapping[str, Any], ends: np.ndarray | None, where: str) -> np.ndarray:
    """Frame after the last of each episode, int64: `ends` where the recording has them, else one after each done.

    Without either, all frames are one episode. `UserError` for ends that do not rise to the number of frames.
    """
    frames = len(columns["observations"])
    for column, values in columns.items():
        if len(values) != frames:
            raise UserError(f"{where}: {len(values)} {column} for {frames} frames; every column needs one row a frame")
    for column in columns.keys() & {"dones", "terminals"}:
        if columns[column].ndim != 1 or columns[column].dtype.kind not in "biuf":
            raise UserError(
                f"{where}: {column} are {columns[column].dtype} of shape {list(columns[column].shape)}; "
                "expected one truth value or number a frame"
            )
    if frames == 0:
        raise UserError(f"{where}: there are no frames in it")
    if ends is None:
        dones = columns["dones"][:] if "dones" in columns else np.empty(0)
        ends = np.union1d(np.flatnonzero(dones) + 1, [frames])
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or len(ends) == 0:
        raise UserError(
            f"{where}: episode_ends is {ends.dtype} of shape {list(ends.shape)}; expected a row of integers"
        )
    ends = ends.astype(np.int64)
    if ends[-1] != frames or (np.diff(ends, prepend=0) <= 0).any():
        raise UserError(f"{where}: episode_ends must rise from above 0 to {frames}, the number of frames")
    return ends


def read_episodes(columns: Mapping[str, Any], ends: np.ndarray, where: str) -> Iterator[Episode]:
    """The episodes one by one; only one is in memory at a time when the columns are on disk.

    Actions and rewards of another float width become float32. The last frame of an episode that `terminals` does not
    mark as terminated is truncated: the recording stopped there.
    """
    first = 0
    for number, end in enumerate(ends.tolist()):
        name = f"{where}, episode {number}"
        part = {column: np.asarray(values[first:end]) for column, values in columns.items()}
        terminated = part["terminals"].astype(bool) if "terminals" in part else np.zeros(end - first, bool)
        dones = part["dones"].astype(bool) if "dones" in part else np.zeros_like(terminated)
        truncated = dones & ~terminated
        truncated[-1] = not terminated[-1]
        yield Episode(
            observations=part["observations"],
            actions=_float32(part["actions"]),
            rewards=_float32(part["rewards"]),
            terminated=terminated,
            truncated=truncated,
            name=name,
        )
        first = end


def _float32(values: np.ndarray) -> np.ndarray:
    # What is too large for float32 becomes infinity, which `Episode` refuses by name.
    with np.errstate(over="ignore"):
        return values.astype(np.float32) if values.dtype.kind == "f" else values
