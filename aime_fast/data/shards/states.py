"""`states.npy`: the simulator's state of every frame, beside the shards of episodes that `collect` recorded.

It is one array, float64 [frames, n], of all episodes end to end. The manifest's `collection["state"]` has its
`sha256` and what the columns are. Training never opens it, so the format of a chunk stays as it is.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.shards.manifest import Manifest
from aime_fast.errors import UserError

STATES = "states.npy"
STATE = "state"
"""Key in the manifest's `collection`."""


@dataclass(frozen=True)
class StateLayout:
    """What the n columns of a state are: time, then positions, then velocities, then what only a restart needs."""

    positions: list[str]
    """Names of the generalised positions."""
    velocities: list[str]
    """Names of the generalised velocities."""
    angles: list[str]
    """Positions that are angles without limits: only their sine and cosine can be seen."""
    unseen: list[str]
    """Positions that no frame shows: where a body is that the camera follows."""

    def seen_positions(self, states: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Names and values [N, p] of the positions that a frame shows, of states [N, n]; angles as sine and cosine."""
        names: list[str] = []
        columns: list[np.ndarray] = []
        for name, column in zip(self.positions, states[:, 1:].T, strict=False):
            if name in self.angles:
                names += [f"sin {name}", f"cos {name}"]
                columns += [np.sin(column), np.cos(column)]
            elif name not in self.unseen:
                names.append(name)
                columns.append(column)
        return names, np.stack(columns, axis=1)

    def moving_velocities(self, states: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Names and values [N, v] of the velocities of states [N, n]."""
        first = 1 + len(self.positions)
        return self.velocities, states[:, first : first + len(self.velocities)]


@dataclass(frozen=True, eq=False)
class KeptStates:
    """The simulator's states of a folder of shards."""

    states: np.ndarray
    """float64 [frames, n] of all episodes end to end, mapped."""
    first: np.ndarray
    """int64 [episodes + 1], the first row of each episode."""
    layout: StateLayout
    collection: dict[str, Any]
    """How the episodes were recorded: what a new simulation of them needs."""

    def of(self, episode: int) -> np.ndarray:
        """States [N, n] of the episode with this number in the folder."""
        return np.asarray(self.states[self.first[episode] : self.first[episode + 1]])


def write_states(folder: Path, parts: Iterable[np.ndarray]) -> str:
    """Write the episodes' states, each float64 [N, n], as `states.npy`; returns the file's SHA-256."""
    path = folder / STATES
    np.save(path, np.concatenate(list(parts)))
    return _checksum(path)


def read_states(folder: Path, manifest: Manifest) -> KeptStates:
    """The states beside the shards in `folder`; `UserError` if none were kept, or if the file is missing or damaged."""
    collection = manifest.collection or {}
    if STATE not in collection:
        raise UserError(f"{folder}: no simulator's states are kept in it; record them with `aime-fast collect`")
    path, lengths = folder / STATES, [entry.length for entry in manifest.episodes]
    try:
        kept = dict(collection[STATE])
        if _checksum(path) != kept.pop("sha256"):
            raise ValueError("wrong sha256")
        states, layout = np.load(path, mmap_mode="r", allow_pickle=False), StateLayout(**kept)
        if states.ndim != 2 or len(states) != sum(lengths):
            raise ValueError(f"shape {list(states.shape)} for {sum(lengths)} frames")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); copy it again, or collect again") from error
    return KeptStates(states, np.cumsum([0, *lengths]), layout, collection)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
