"""A recording in any layout, as the rest of the project sees it."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aime_fast.data.episode import Episode
from aime_fast.errors import UserError


@dataclass(frozen=True)
class Source:
    """A recording that is read an episode at a time, in any order; it can be pickled and read by another process."""

    format: str
    """Layout that was recognised, for people: `HDF5`, `LeRobot v3`."""
    where: str
    """File or folder, for messages."""
    environment: str | None
    """Task that was recorded, where the recording says so."""
    lengths: list[int]
    """Frames that each episode has once read."""
    episode: Callable[[int], Episode]
    """The episode of a number; `UserError` naming file and episode where it is damaged."""
    notes: tuple[str, ...] = ()
    """What reading changes, and what was changed before: one sentence each."""
    collection: dict[str, Any] | None = None
    """How the episodes were recorded, where this project recorded them."""

    def read(self) -> Iterator[Episode]:
        """All episodes in order; starts over each time it is called."""
        return map(self.episode, range(len(self.lengths)))


def require(module: str, extra: str, where: Path) -> None:
    """Raise `UserError` with the line that installs it where a library that reads `where` is missing."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{where}: reading it needs {module}; run pip install 'aime-fast[{extra}]'")
