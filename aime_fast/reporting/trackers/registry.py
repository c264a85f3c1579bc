"""The trackers by name, and all those of a run as one."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from aime_fast.errors import UserError, unknown_name
from aime_fast.reporting.trackers.tensorboard import TensorBoard
from aime_fast.reporting.trackers.tracker import RunIdentity, Tracker, run_id
from aime_fast.reporting.trackers.trackio_client import Trackio
from aime_fast.reporting.trackers.weights_and_biases import WeightsAndBiases

GIVE_UP = 3
"""A tracker that fails this often in a row is left out: a network that is down must not delay every row."""
TRACKERS: dict[str, Callable[[RunIdentity], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""The name of a tracker is that of its package."""


def check_trackers(names: Sequence[str]) -> None:
    """`UserError` for a name that no tracker has, and for one whose package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise unknown_name("tracker", name, [*TRACKERS, "none"])
        if find_spec(name) is None:
            raise UserError(f"--logging.tracker {name} needs the package {name}: pip install 'aime-fast[{name}]'")


@dataclass
class _Followed:
    """A tracker that is open."""

    name: str
    tracker: Tracker
    failures: int = 0
    in_a_row: int = 0


class Trackers:
    """All trackers of a run. One that fails is named once by `note` and never ends a run."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        config: Mapping[str, object],
        resume_step: int | None,
        note: Callable[[str], None],
    ) -> None:
        self._note = note
        self._followed: list[_Followed] = []
        self.failures: dict[str, int] = {}
        """Calls that failed, by the name of the tracker."""
        for name in names:
            try:
                tracker = TRACKERS[name](RunIdentity(folder, run_id(folder), config, resume_step))
            except Exception as error:
                self.failures[name] = 1
                note(f"{name} cannot be used ({_said(error)}); training continues without it")
            else:
                self._followed.append(_Followed(name, tracker))
                note(f"{name}: {tracker.where}")

    def __bool__(self) -> bool:
        """Whether anything takes what is given."""
        return bool(self._followed)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The values of one row, by tag."""
        self._each(step, lambda tracker: tracker.scalars(step, values))

    def picture(self, step: int, tag: str, path: Path) -> None:
        """A PNG file."""
        self._each(step, lambda tracker: tracker.picture(step, tag, path))

    def histogram(self, step: int, tag: str, shares: np.ndarray) -> None:
        """Bars of these heights; none for an empty array."""
        if len(shares):
            self._each(step, lambda tracker: tracker.histogram(step, tag, shares))

    def text(self, step: int, tag: str, text: str) -> None:
        """A line of text."""
        self._each(step, lambda tracker: tracker.text(step, tag, text))

    def close(self) -> None:
        """Close all, and say which calls are missing."""
        self._each(0, lambda tracker: tracker.close())
        self._followed = []
        for name, count in self.failures.items():
            self._note(f"{name} has not got all of the run: {count} of its calls failed")

    def _each(self, step: int, call: Callable[[Tracker], None]) -> None:
        for followed in list(self._followed):
            try:
                call(followed.tracker)
                followed.in_a_row = 0
            except Exception as error:
                self._failed(step, followed, error)

    def _failed(self, step: int, followed: _Followed, error: Exception) -> None:
        name = followed.name
        followed.in_a_row += 1
        self.failures[name] = self.failures.get(name, 0) + 1
        if self.failures[name] == 1:
            self._note(f"step {step}: {name} failed ({_said(error)}); training continues")
        if followed.in_a_row == GIVE_UP:
            self._followed.remove(followed)
            with suppress(Exception):
                followed.tracker.close()
            self._note(f"step {step}: {name} failed {GIVE_UP} times in a row; training continues without it")


def _said(error: Exception) -> str:
    """What an error says, in one line of bearable length."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
