"""A recording in any layout, as the rest of the project sees it."""

import importlib.util
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.action_origin import FOLLOWS, ActionOrigin
from aime_fast.data.episode import DEFAULT_SIZE, Episode
from aime_fast.data.files import refuse_pointer
from aime_fast.errors import UserError

# What libraries raise, depending on the place of the damage, for a file that is cut, edited or damaged.
DAMAGE = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError, AssertionError,
    EOFError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


VIDEO_TOLERANCE = 1e-4
"""Largest distance in seconds of a frame of a video from the time of its row; the one that LeRobot uses."""


@dataclass(frozen=True)
class Pictures:
    """Which pictures of a recording to read, how they become frames, and where the actions beside them belong."""

    camera: str | None = None
    """Name of the pictures where a recording has several; None for the usual names."""
    asked_size: int | None = None
    """S that was asked for."""
    last_of_stack: bool = False
    """Whether to take the last picture where each row holds a stack of several."""
    video_tolerance: float = VIDEO_TOLERANCE
    """Largest distance in seconds of a frame of a video from the time of its row."""
    actions: str | None = None
    """`led` or `follows`, if one was asked for (`action_origin`)."""

    @property
    def size(self) -> int:
        """S, the side of a frame in pixels."""
        return self.asked_size or DEFAULT_SIZE


OWN = ActionOrigin(FOLLOWS, "this project records them so")


@dataclass(frozen=True)
class Source:
    """A recording that is read episode by episode, in any order. It can be pickled and read by another process."""

    format: str
    """Layout that was found, such as `HDF5` or `LeRobot v3`."""
    where: str
    """File or folder, for error messages."""
    environment: str | None
    """Recorded task, if the recording names it."""
    lengths: list[int]
    """Number of frames of each episode."""
    image_size: int
    """S of the frames."""
    episode: Callable[[int], Episode]
    """Reads the episode of a number; `UserError` names file and episode if it is damaged."""
    notes: tuple[str, ...] = ()
    """What reading changes, and what was changed before: one sentence each."""
    collection: dict[str, Any] | None = None
    """How the episodes were recorded, if this project recorded them."""
    has_rewards: bool = True
    """Whether the recording has rewards; without them they are zero."""
    states: Callable[[int], np.ndarray] | None = None
    """Reads the simulator's states float64 [N, n] of an episode; None if the recording keeps none."""
    origin: ActionOrigin = OWN
    """What the recording's actions meant. Those of the episodes follow their frame."""

    def checked(self, number: int, action_dim: int | None) -> Episode:
        """The episode of a number; `UserError` unless it has the listed length, S, and this action size (None: any)."""
        episode, length = self.episode(number), self.lengths[number]
        name = episode.name
        if action_dim not in (None, episode.action_dim):
            raise UserError(f"{name}: actions of {episode.action_dim} numbers after {action_dim}; pack the tasks apart")
        if len(episode) != length:
            raise UserError(f"{name}: {len(episode)} frames where the recording lists {length}; fix the recording")
        if episode.image_size != self.image_size:
            raise UserError(f"{name}: frames of {episode.image_size} pixels, expected {self.image_size}")
        return episode

    def read(self) -> Iterator[Episode]:
        """All episodes in order; each call starts again."""
        return map(self.episode, range(len(self.lengths)))


@dataclass(frozen=True)
class _Kept:
    """Reads by number the episodes that were not left out."""

    read: Callable[[int], Any]
    numbers: list[int]

    def __call__(self, number: int) -> Any:
        return self.read(self.numbers[number])


def without_fragments(source: Source) -> Source:
    """The source without episodes of no transition, with a note that counts them; `UserError` if none is left."""
    kept = [number for number, length in enumerate(source.lengths) if length > 0]
    if not source.lengths:
        raise UserError(f"{source.where}: there are no frames in it")
    count, left_out = len(source.lengths), len(source.lengths) - len(kept)
    if not left_out:
        return source
    if not kept:
        short = "its only episode has" if count == 1 else f"all its {count} episodes have"
        raise UserError(f"{source.where}: {short} no action with a frame before and after it; record longer ones")
    note = f"{left_out} of {count} episodes too short for an action between two frames: left out"
    return replace(
        source,
        lengths=[source.lengths[number] for number in kept],
        episode=_Kept(source.episode, kept),
        states=_Kept(source.states, kept) if source.states else None,
        notes=(*source.notes, note),
    )


def require(module: str, extra: str, where: Path) -> None:
    """Raise `UserError` with the install line if the library that reads `where` is missing."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{where}: reading it needs {module}; run pip install 'aime-fast[{extra}]'")


@contextmanager
def readable(path: Path, format: str) -> Iterator[None]:
    """Turn what a damaged `path` raises into `UserError`."""
    try:
        yield
    except DAMAGE as error:
        refuse_pointer(path)
        raise UserError(f"{path}: cannot be read as {format} ({error}); copy or record it again") from error
