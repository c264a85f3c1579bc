"""Whether the action in a row of a recording led to the row's frame or follows it, and how one can tell.

DreamerV1, DreamerV2 and replay buffers of dm_env store with each frame the action that led to it; at the first frame
there is none, and zeros stand for it. DreamerV3 stores the action chosen after the frame, and zeros at the last one.
"""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

from aime_fast.errors import UserError, unknown_name

LED, FOLLOWS = "led", "follows"
CHOICES = (LED, FOLLOWS)
FEWEST_ROWS = 3
"""Rows of an episode in which the row beside the first is not the last."""


@dataclass(frozen=True)
class ActionOrigin:
    """What the actions of a recording mean, before they become those of an `Episode`, which follow their frame."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")
    stored: Annotated[str, Field(pattern="^(led|follows)$")]
    """`led` to the frame of its row, or `follows` it."""
    evidence: str
    """Why this is assumed."""

    @property
    def line(self) -> str:
        """What was assumed and why, in one line."""
        return f"actions {self.meaning}: {self.evidence}"

    @property
    def meaning(self) -> str:
        """What was assumed, for a sentence that begins with the actions."""
        return "led to the frame of their row" if self.stored == LED else "follow the frame of their row"


def defined_by(format: str, asked: str | None, where: str) -> ActionOrigin:
    """The origin in a format in which actions can only follow; `UserError` if another one was asked for."""
    if asked == LED:
        raise UserError(f"{where}: actions follow their frame in {format}; leave --actions led out")
    return ActionOrigin(FOLLOWS, f"{format} defines it so")


def check_choice(asked: str | None) -> str | None:
    """Return `asked`; `UserError` unless it is None or one of `CHOICES`."""
    if asked not in (None, *CHOICES):
        raise unknown_name("--actions", str(asked), CHOICES)
    return asked


@dataclass
class ZeroActions:
    """In how many episodes the action at an end is zero and the one beside it is mostly not."""

    width: int = 0
    """Numbers in an action."""
    firsts: list[tuple[bool, bool]] = field(default_factory=list)
    """Of each episode that was seen to start: whether its first action is zero, and its second."""
    lasts: list[tuple[bool, bool]] = field(default_factory=list)
    """Of each that was seen to end: whether its last action is zero, and the one before."""

    def see(self, actions: np.ndarray, starts: bool = True, ends: bool = True) -> None:
        """Add the actions [n,A] of an episode; `starts` and `ends` say whether it does so in the recording.

        Episodes too short to tell, and those that reading will refuse, are passed over.
        """
        if actions.ndim != 2 or actions.dtype.kind not in "biuf" or len(actions) < FEWEST_ROWS:
            return
        if not np.isfinite(actions).all():
            return
        self.width = max(self.width, actions.shape[1])
        zero = [not actions[row].any() for row in (0, 1, -1, -2)]
        self.firsts += [(zero[0], zero[1])] if starts else []
        self.lasts += [(zero[2], zero[3])] if ends else []

    @property
    def words(self) -> str:
        """The counts, for a sentence that begins with the actions."""
        counts = [f"{sum(at for at, _ in rows)} of {len(rows)}" for rows in (self.firsts, self.lasts)]
        return f"they are zero on {counts[0]} first rows and on {counts[1]} last rows"

    @property
    def shown(self) -> str | None:
        """The origin that the counts show; None if they show neither or both."""
        led, follows = _marked(self.firsts), _marked(self.lasts)
        return None if led == follows else LED if led else FOLLOWS


def _marked(rows: list[tuple[bool, bool]]) -> bool:
    """Whether zeros mark this end: all actions there are zero, and at most half of those beside them."""
    return bool(rows) and all(at for at, _ in rows) and sum(beside for _, beside in rows) <= len(rows) / 2


def decide(zeros: ZeroActions, where: str, asked: str | None, usual: str | None = None) -> ActionOrigin:
    """The origin that was `asked` for, or that the content shows, or the format's `usual` one.

    `UserError`, which says how to choose, if the content decides nothing and there is no usual one, or it shows
    another.
    """
    if asked is not None:
        return ActionOrigin(asked, f"--actions {asked} says so; {zeros.words}")
    if zeros.shown is not None and usual in (None, zeros.shown):
        return ActionOrigin(zeros.shown, zeros.words)
    if usual is not None and zeros.shown is None:
        return ActionOrigin(usual, f"they do in recordings without columns of time steps; {zeros.words}")
    choices = f"say --actions {LED} (DreamerV1, DreamerV2, V-D4RL) or --actions {FOLLOWS} (DreamerV3)"
    problem = "actions look as if they led to" if usual else "nothing shows whether actions led to or follow"
    raise UserError(f"{where}: {problem} the frame of their row ({zeros.words}); {choices}")
