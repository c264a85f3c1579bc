"""Episodes from columns: files of arrays that hold every frame of every episode one after another."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aime_fast.data.action_origin import FOLLOWS, LED, ActionOrigin, ZeroActions, decide
from aime_fast.data.episode import Episode
from aime_fast.data.sources.frames import (
    ARRIVING_NOTE,
    LAST_FRAME_NOTE,
    LATE_REWARD_NOTE,
    NO_ENDS_NOTE,
    NO_REWARDS_NOTE,
    as_float32,
    as_frames,
    choose_camera,
    episode_of,
    last_of_stacks,
    picture_notes,
)
from aime_fast.data.sources.source import Pictures, Source
from aime_fast.errors import UserError

KEYS = {
    "observations": ("observations", "observation_pixels", "pixels", "image", "images", "observation", "frames"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
}
ENDS = ("dones", "terminals", "timeouts")
MARKS = {
    "dones": ("dones", "is_last"),
    "terminals": ("terminals", "terminated", "is_terminal"),
    "timeouts": ("timeouts", "truncated"),
    "starts": ("is_first",),
    "steps": ("step_type",),
    "discount": ("discount",),
}
"""Optional columns: one number or truth value a frame."""

# Only time steps of dm_env and Dreamer have these. There the reward of a row came with its frame.
TIMED = ("is_first", "step_type", "discount")
FIRST_STEP, LAST_STEP = 0, 2
"""Values of dm_env's `step_type`."""


class Arrays(NamedTuple):
    """What an open file holds."""

    by_name: Mapping[str, Any]
    """Each loaded when it is sliced."""
    environment: str | None
    """The task that the file names."""
    notes: tuple[str, ...] = ()
    """What reading the file changes."""


Opener = Callable[[Path], AbstractContextManager[Arrays]]


class _Place(NamedTuple):
    """The rows of an episode."""

    path: Path
    number: int
    """Of the episode in its file."""
    rows: slice


class _Meaning(NamedTuple):
    """What the rows of all episodes mean."""

    timed: bool
    """Whether they are time steps, whose last one has no action after it."""
    led: bool
    """Whether actions led to the frame of their row."""
    reward_led: bool
    """Whether rewards were earned on the way to it."""

    @property
    def transitions_only(self) -> bool:
        """Whether the last row only shows where the action before it led."""
        return self.timed or self.led

    @property
    def notes(self) -> list[str]:
        """What reading changes."""
        if self.led:
            return [ARRIVING_NOTE]
        return [LAST_FRAME_NOTE, *([LATE_REWARD_NOTE] if self.reward_led else [])] if self.timed else []


class _Evidence:
    """What is seen at the ends of episodes: actions and rewards that are zero."""

    def __init__(self) -> None:
        self.timed: set[bool] = set()
        self.zeros = ZeroActions()
        self._first_rewards = self._last_rewards = False

    def see(self, columns: Mapping[str, Any], spans: Sequence[slice], timed: bool) -> None:
        """Add the episodes of a file."""
        self.timed.add(timed)
        names = ("actions", "rewards", "starts", "steps", *ENDS)
        values = {name: np.asarray(columns[name][:]) for name in names if name in columns}
        for rows in spans:
            part = {name: column[rows] for name, column in values.items()}
            starts, ends = _starts(part), _ends(part)
            self.zeros.see(part["actions"], starts, ends)
            if "rewards" in part:
                self._first_rewards |= starts and bool(part["rewards"][0].any())
                self._last_rewards |= ends and bool(part["rewards"][-1].any())

    def meaning(self, where: str, asked: str | None) -> tuple[_Meaning, ActionOrigin]:
        """What the rows mean; `UserError` if that is open."""
        if len(self.timed) > 1:
            columns = ", ".join(TIMED)
            raise UserError(f"{where}: some files have columns of time steps ({columns}), some none; pack them apart")
        (timed,) = self.timed
        # Without numbers in actions, either is right.
        usual = None if timed and self.zeros.width else FOLLOWS
        origin = decide(self.zeros, where, asked, usual)
        led = origin.stored == LED
        after = self._first_rewards and not self._last_rewards
        return _Meaning(timed, led, led or (timed and not after)), origin


def _starts(part: Mapping[str, np.ndarray]) -> bool:
    """Whether an episode starts in the recording, and not in the middle of a longer one."""
    if "starts" in part:
        return bool(part["starts"][0])
    return "steps" not in part or bool(part["steps"][0] == FIRST_STEP)


def _ends(part: Mapping[str, np.ndarray]) -> bool:
    """The same of its end."""
    marks = [name for name in ENDS if name in part]
    if marks:
        return any(bool(part[name][-1]) for name in marks)
    return "steps" not in part or bool(part["steps"][-1] == LAST_STEP)


def columns_source(format: str, opener: Opener, where: Path, paths: Sequence[Path], pictures: Pictures) -> Source:
    """The episodes of all files, in order.

    `UserError` if a file is damaged, a column is missing, lengths differ, or nothing shows what actions mean.
    """
    places: list[_Place] = []
    environments: set[str | None] = set()
    notes: list[str] = []
    has_rewards, evidence = True, _Evidence()
    for path in paths:
        with opener(path) as (arrays, environment, file_notes):
            columns = find_columns(arrays, str(path), pictures.camera)
            ends = episode_ends(columns, arrays.get("episode_ends"), str(path)).tolist()
            spans = list(map(slice, [0, *ends[:-1]], ends))
            evidence.see(columns, spans, any(name in arrays for name in TIMED))
            places += [_Place(path, number, rows) for number, rows in enumerate(spans)]
            environments.add(environment)
            if len(paths) == 1 and "episode_ends" not in arrays and not columns.keys() & {*ENDS, "starts", "steps"}:
                notes.append(NO_ENDS_NOTE)
            has_rewards &= "rewards" in columns
            notes += [*file_notes, *picture_notes(columns["observations"], pictures, str(path))]
    if not places:
        raise UserError(f"{paths[0]}: there are no frames in it")
    if len(environments) > 1:
        raise UserError(f"{where}: its files name several tasks ({_listed(environments)}); pack the tasks apart")
    meaning, origin = evidence.meaning(str(where), pictures.actions)
    notes = [*meaning.notes, *notes, *([] if has_rewards else [NO_REWARDS_NOTE])]
    return Source(
        format,
        str(where),
        environments.pop(),
        [place.rows.stop - place.rows.start - meaning.transitions_only for place in places],
        pictures.size,
        partial(_read, opener, places, meaning, pictures),
        tuple(dict.fromkeys(notes)),
        has_rewards=has_rewards,
        origin=origin,
    )


def _read(opener: Opener, places: list[_Place], meaning: _Meaning, pictures: Pictures, number: int) -> Episode:
    place = places[number]
    with opener(place.path) as (arrays, *_):
        columns = find_columns(arrays, str(place.path), pictures.camera)
        part = {column: np.asarray(values[place.rows]) for column, values in columns.items()}
    part["observations"] = last_of_stacks(part["observations"], pictures)
    part.setdefault("rewards", np.zeros(place.rows.stop - place.rows.start, np.float32))
    name = f"{place.path}, episode {place.number}"
    if not meaning.transitions_only:
        return _acted(part, name, pictures.size)
    return _transitions(part, meaning, name, pictures.size)


def _acted(part: dict[str, np.ndarray], name: str, size: int) -> Episode:
    """An episode in which action and reward follow the frame of their row; every row is kept."""
    terminated = part["terminals"].astype(bool) if "terminals" in part else np.zeros(len(part["rewards"]), bool)
    truncated = np.zeros_like(terminated)
    for mark in part.keys() & {"dones", "timeouts"}:
        truncated |= part[mark].astype(bool)
    truncated &= ~terminated
    # The recording stopped unless it says that the task ended.
    truncated[-1] = not terminated[-1]
    return Episode(
        observations=as_frames(part["observations"], size),
        actions=as_float32(part["actions"]),
        rewards=as_float32(part["rewards"]),
        terminated=terminated,
        truncated=truncated,
        name=name,
    )


def _transitions(part: dict[str, np.ndarray], meaning: _Meaning, name: str, size: int) -> Episode:
    """An episode of all rows but the last, each with the action and the reward between its frame and the next."""
    last = {mark: part[mark][-1] for mark in part.keys() & {"terminals", "discount"}}
    terminated = bool(last["terminals"] if "terminals" in last else last.get("discount", 1) == 0)
    actions = part["actions"][1:] if meaning.led else part["actions"][:-1]
    rewards = part["rewards"][1:] if meaning.reward_led else part["rewards"][:-1]
    return episode_of(name, part["observations"][:-1], size, actions, rewards, terminated)


def find_columns(arrays: Mapping[str, Any], where: str, camera: str | None = None) -> dict[str, Any]:
    """The columns of `arrays` under this project's names; `UserError` if frames or actions are missing."""
    found = {}
    for column, keys in KEYS.items():
        keys = (camera,) if camera and column == "observations" else keys
        present = [key for key in keys if key in arrays]
        if column == "observations" and all(arrays[key].ndim < 3 for key in present):
            # Pictures under a name of their own, such as a camera's; a known name may hold a state vector.
            cameras = [name for name, array in arrays.items() if array.ndim >= 4]
            present = [choose_camera(cameras, camera, where)] if cameras else present
        if not present and column == "rewards":
            continue
        if not present:
            none = ", of shape [N,0] if nothing acts" if column == "actions" else ""
            raise UserError(
                f"{where}: no {column} ({' or '.join(keys)}); it holds {_listed(arrays)}. Rename or add it{none}"
            )
        # One of the names may hold a state vector, and another the pictures.
        pictures = (key for key in present if arrays[key].ndim == 4 and arrays[key].dtype == np.uint8)
        found[column] = arrays[next(pictures, present[0])]
    if found["observations"].ndim < 3:
        raise UserError(
            f"{where}: its observations are {found['observations'].dtype} {list(found['observations'].shape)}, "
            "no pictures; record uint8 [N,H,W,3]"
        )
    for column, keys in MARKS.items():
        key = next((key for key in keys if key in arrays), None)
        if key is not None:
            found[column] = arrays[key]
    return found


def episode_ends(columns: Mapping[str, Any], ends: Any | None, where: str) -> np.ndarray:
    """Frame after the last of each episode, int64: `ends` if the recording has them, otherwise by its marks.

    These are frames that are done, terminal, timed out or first; none without frames. `UserError` for ends that do not
    rise to the last one.
    """
    frames = len(columns["observations"])
    for column, values in columns.items():
        if len(values) != frames:
            raise UserError(f"{where}: {len(values)} {column} for {frames} frames; every column needs one row a frame")
        if column in MARKS and (values.ndim != 1 or values.dtype.kind not in "biuf"):
            raise UserError(
                f"{where}: {column} are {values.dtype} of shape {list(values.shape)}; "
                "expected one truth value or number a frame"
            )
    if frames == 0:
        return np.empty(0, np.int64)
    if ends is None:
        marked = [np.flatnonzero(columns[mark][:]) + 1 for mark in ENDS if mark in columns]
        starts = np.empty(0, np.int64)
        if "starts" in columns:
            starts = np.flatnonzero(columns["starts"][:])
        elif "steps" in columns:  # of dm_env: 0 marks the first step of an episode
            starts = np.flatnonzero(columns["steps"][:] == 0)
        ends = np.unique(np.concatenate([*marked, starts[starts > 0], [frames]]))
    ends = np.asarray(ends[:])
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or len(ends) == 0:
        raise UserError(
            f"{where}: episode_ends is {ends.dtype} {list(ends.shape)}; expected a row of integers, the frame after "
            "each episode's last"
        )
    ends = ends.astype(np.int64)
    if ends[-1] != frames or (np.diff(ends, prepend=0) <= 0).any():
        raise UserError(f"{where}: episode_ends must rise from above 0 to {frames}, the number of frames")
    return ends


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"
