"""HDF5 files that hold their episodes in groups, as the columns of one table.

robomimic and LIBERO: `data/demo_N/actions` and `data/demo_N/obs/CAMERA`. ALOHA: `action` and
`observations/images/CAMERA` at the top of a file for each episode, raw or as padded JPEG. In all of them the action of
a row follows its frame. https://robomimic.github.io/docs/datasets/overview.html, https://github.com/tonyzhaozh/act
"""

import functools
import importlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import h5py
import numpy as np

from aime_fast.data.sources.frames import channel_axis, decode_picture
from aime_fast.errors import UserError

ACTIONS, REWARDS = ("actions", "action"), ("rewards", "reward")
OF_PICTURES = ("obs", "observations", "observation", "images", "pixels", "rgb")
"""Names of the groups of an episode in which pictures are looked for."""
PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff")
COMPRESSED_NOTE = (
    "frames were decoded from JPEG or PNG in the file; writers that use OpenCV may have swapped red and blue: "
    "look with `aime-fast inspect --sheet`"
)


class _Column(NamedTuple):
    """One column of all episodes."""

    names: tuple[str, ...]
    """The data set of each episode."""
    row: tuple[int, ...]
    """Shape of a row."""
    dtype: np.dtype
    compressed: bool
    """Whether each row is a picture's file."""


@dataclass(frozen=True)
class _Table:
    """The columns of a file by name."""

    columns: dict[str, _Column]
    ends: np.ndarray
    """Row after the last of each episode."""
    at_top: bool
    """Whether the file is one group, so that other data sets beside these may mark episodes."""
    environment: str | None
    notes: tuple[str, ...]


def grouped_columns(file: h5py.File, path: Path) -> tuple[dict[str, Any], str | None, tuple[str, ...]]:
    """Columns of an open file that lie in groups, each read when it is sliced; the task; what reading changes.

    They are `actions`, `rewards` if all episodes have them, the pictures under their own names, and `episode_ends` if
    each episode is a group. Nothing for a file with columns at its top. `UserError` if episodes have no pictures, or
    not one for each action.
    """
    table = _find_table(path, path.stat().st_mtime_ns)
    if table is None:
        return {}, None, ()
    arrays: dict[str, Any] = {name: _Rows(file, column, table.ends) for name, column in table.columns.items()}
    return arrays if table.at_top else arrays | {"episode_ends": table.ends}, table.environment, table.notes


class _Rows:
    """A column of all episodes end to end, as far as reading needs an array."""

    def __init__(self, file: h5py.File, column: _Column, ends: np.ndarray) -> None:
        self._file, self._column, self._ends = file, column, ends
        self.shape, self.dtype = (int(ends[-1]), *column.row), column.dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        parts = [np.empty((0, *self._column.row), self.dtype)]
        for number in range(int(np.searchsorted(self._ends, start, "right")), len(self._ends)):
            first = int(self._ends[number - 1]) if number else 0
            if first >= stop:
                break
            part = self._file[self._column.names[number]][max(start - first, 0) : stop - first]
            parts.append(_decoded(part) if self._column.compressed else part)
        return np.concatenate(parts)


@functools.lru_cache(maxsize=8)
def _find_table(path: Path, change: int) -> _Table | None:
    """The table of a file as of the time `change`. Cached, because episodes are read one by one."""
    with h5py.File(path, "r") as file:
        groups = _episode_groups(file)
        at_top = groups == [""]
        if at_top and any(isinstance(item, h5py.Dataset) and item.ndim >= 4 for _, item in _members(file)):
            return None
        if not groups:
            _check_not_only_groups(path, file)
            return None
        actions = {group: f"{group}/{_first(file[group or '/'], ACTIONS)}" for group in groups}
        pictures = {group: _pictures(file[group or "/"], group) for group in groups}
        names = sorted(set.intersection(*(set(found) for found in pictures.values())))
        if not names:
            return None if at_top else _without_pictures(path, file, pictures)
        lengths = [len(file[name]) for name in actions.values()]
        columns = {"actions": _column(file, list(actions.values()))}
        for name in names:
            columns[name] = _column(file, [pictures[group][name] for group in groups])
            for group, length in zip(groups, lengths, strict=True):
                _check_length(path, file, group, pictures[group][name], length)
        rewards = [_first(file[group or "/"], REWARDS) for group in groups]
        if all(rewards):
            columns["rewards"] = _column(file, [f"{g}/{name}" for g, name in zip(groups, rewards, strict=True)])
        notes = [] if at_top else [_groups_note(groups)]
        notes += [COMPRESSED_NOTE] if any(column.compressed for column in columns.values()) else []
        return _Table(columns, np.cumsum(lengths), at_top, _environment(file), tuple(notes))


def _check_not_only_groups(path: Path, file: h5py.File) -> None:
    """Refuse a file of nothing but groups without actions; the reader of columns says what is missing in others."""
    if not any(isinstance(item, h5py.Dataset) for _, item in _members(file)) and len(file):
        raise UserError(
            f"{path}: no data set named actions or action; it holds {_held(file)}; add it beside the frames"
        )


def _without_pictures(path: Path, file: h5py.File, pictures: Mapping[str, Mapping[str, str]]) -> NoReturn:
    lacking = next((group for group, found in pictures.items() if not found), None)
    if lacking is None:
        cameras = sorted({name for found in pictures.values() for name in found})
        raise UserError(f"{path}: its episodes have no camera in common ({', '.join(cameras)}); pack them apart")
    raise UserError(
        f"{path}: {lacking} has actions but no pictures; it holds {_held(file[lacking])}. Record images "
        "(robomimic: dataset_states_to_obs.py --camera_names)"
    )


def _held(group: h5py.Group) -> str:
    """Names of data sets in a group, a dozen at most."""
    names: list[str] = []
    group.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"


def _check_length(path: Path, file: h5py.File, group: str, pictures: str, length: int) -> None:
    frames = len(file[pictures])
    if frames == length + 1 and {"terminations", "truncations"} <= set(file[group or "/"]):
        raise UserError(f"{path}: a file of a Minari data set; give the folder that it lies in")
    if frames != length:
        raise UserError(f"{path}: {pictures} has {frames} frames for {length} actions; every row needs both")


def _episode_groups(file: h5py.File) -> list[str]:
    """Names of the groups that hold actions, and lie in no other such group, by their numbers; "" is the top."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()  # a link may lead back to a group above

    def look(name: str, group: h5py.Group) -> None:
        info = h5py.h5o.get_info(group.id)
        if (info.fileno, info.addr) in seen:
            return
        seen.add((info.fileno, info.addr))
        if _first(group, ACTIONS):
            found.append(name)
            return
        for key, item in _members(group):
            if isinstance(item, h5py.Group):
                look(f"{name}/{key}", item)

    look("", file)
    return sorted(found, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])


def _members(group: h5py.Group) -> list[tuple[str, Any]]:
    """The items of a group that exist: a link may have no target."""
    return [(key, item) for key in group if (item := group.get(key)) is not None]


def _first(group: h5py.Group, names: tuple[str, ...]) -> str | None:
    """The first of the names that is a data set of a group."""
    return next((name for name in names if isinstance(group.get(name), h5py.Dataset)), None)


def _pictures(group: h5py.Group, name: str) -> dict[str, str]:
    """The pictures of an episode: their names, made short where that is unique, and their data sets."""
    found = {key: f"{name}/{key}" for key, item in _members(group) if _is_picture(item)}

    def visit(key: str, item: Any) -> None:
        if _is_picture(item):
            found[f"{place}/{key}"] = f"{name}/{place}/{key}"

    for place in OF_PICTURES:
        if isinstance(inner := group.get(place), h5py.Group):
            inner.visititems(visit)
    short = [path.rpartition("/")[2] for path in found]
    return {last if short.count(last) == 1 else path: found[path] for last, path in zip(short, found, strict=True)}


def _is_picture(item: Any) -> bool:
    """Whether an item holds colour pictures, raw or compressed. Depth and grey have other numbers of channels."""
    if not isinstance(item, h5py.Dataset):
        return False
    if item.ndim in (4, 5):
        shape = item.shape[-3:]
        return shape[channel_axis(shape)] % 3 == 0
    return _is_compressed(item)


def _is_compressed(item: h5py.Dataset) -> bool:
    """Whether each row is the file of a picture: bytes of one length (padded), or of any length."""
    flat = item.ndim == 2 and item.dtype == np.uint8
    strings = item.ndim == 1 and (item.dtype.kind == "S" or h5py.check_vlen_dtype(item.dtype) == np.uint8)
    return (flat or strings) and len(item) > 0 and _bytes(item[0]).startswith(PICTURE_STARTS)


def _bytes(row: Any) -> bytes:
    return row.tobytes() if isinstance(row, np.ndarray) else bytes(row)


def _decoded(rows: np.ndarray) -> np.ndarray:
    """Rows of compressed pictures as uint8 [n,H,W,3]."""
    return np.stack([decode_picture(_bytes(row)) for row in rows])


def check_filters(item: h5py.Dataset) -> None:
    """Raise `UserError` if this h5py, with hdf5plugin if that is installed, cannot unpack a data set."""
    choices = item.id.get_create_plist()
    for code in (choices.get_filter(number)[0] for number in range(choices.get_nfilters())):
        with suppress(ImportError):
            if not h5py.h5z.filter_avail(code):
                importlib.import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(code):
            raise UserError(
                f"{item.file.filename}: {item.name} is compressed with HDF5 filter {code}, which h5py lacks; "
                "run pip install hdf5plugin"
            )


def _column(file: h5py.File, names: list[str]) -> _Column:
    first = file[names[0]]
    check_filters(first)
    if _is_picture(first) and _is_compressed(first):
        return _Column(tuple(names), _decoded(first[:1]).shape[1:], np.dtype(np.uint8), True)
    return _Column(tuple(names), first.shape[1:], first.dtype, False)


def _groups_note(groups: list[str]) -> str:
    first, last = groups[0].lstrip("/"), groups[-1].lstrip("/")
    return f"each group with actions is an episode: {len(groups)}, {first} to {last}"


def _environment(file: h5py.File) -> str | None:
    """The task that robomimic names, if it does."""
    with suppress(KeyError, ValueError, TypeError):
        name = json.loads(file["data"].attrs["env_args"])["env_name"]
        return name if isinstance(name, str) else None
    return None
