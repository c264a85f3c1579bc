"""What every tracker does, and what it is told of a run."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PROJECT = "aime-fast"
"""The name under which trackers collect runs, unless their own environment variable names another."""
ID_FILE = "tracker-id"


@dataclass(frozen=True)
class RunIdentity:
    """How trackers know a run."""

    folder: Path
    id: str
    """Eight hexadecimal digits, kept in the run's folder: a resumed run goes on under its own id."""
    config: Mapping[str, Any]
    """All settings as nested plain values."""
    resume_step: int | None = None
    """The step from which the run goes on; later values are written again. None for a new run."""

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.resolve().name


class Tracker(Protocol):
    """Takes what a run shows. Steps begin at 1; tags are those of the catalogue, such as `kl/kl_z/val`.

    A method may raise any exception: `Trackers` counts it and training goes on.
    """

    where: str
    """Where to look, in a few words: an address, a folder or a command."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one row, by tag; a value may be nan or infinite."""

    def picture(self, step: int, tag: str, path: Path) -> None:
        """Take a PNG file, which may be replaced afterwards."""

    def histogram(self, step: int, tag: str, shares: np.ndarray) -> None:
        """Take bars [K] of these heights over 0 to 1, 1 to 2, ..., K-1 to K."""

    def text(self, step: int, tag: str, text: str) -> None:
        """Take a line of text, such as a finding."""

    def close(self) -> None:
        """Write what is left."""


def run_id(folder: Path) -> str:
    """The id of the run in a folder; made and kept there the first time. `OSError` where it can't be written."""
    path = folder / ID_FILE
    if not path.exists():
        draft = path.with_suffix(".unfinished")
        draft.write_text(secrets.token_hex(4) + "\n", encoding="ascii")
        os.replace(draft, path)
    return path.read_text(encoding="ascii").strip()
