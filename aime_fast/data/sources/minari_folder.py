"""Minari data sets, read by Minari's own library."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.episode import Episode
from aime_fast.data.sources.frames import LAST_FRAME_NOTE, choose_camera, episode_of, size_notes
from aime_fast.data.sources.source import Source, require
from aime_fast.errors import UserError

# What the library raises, by place, for a folder that was edited or damaged.
BROKEN = (OSError, RuntimeError, KeyError, ValueError, TypeError, AssertionError)


def open_minari(folder: Path, camera: str | None = None) -> Source:
    """Open a data set's folder. An episode has one observation more than actions: the last one is left out.

    Observations are pictures, or a dict that holds some; `camera` chooses where there are several.
    `UserError` for a folder that the library cannot read, or without pictures.
    """
    require("minari", "minari", folder)
    with _storage(folder) as storage:
        count = storage.total_episodes
        if count < 1:
            raise UserError(f"{folder}: there are no episodes in it")
        lengths = [int(row["total_steps"]) for row in storage.get_episode_metadata(range(count))]
        pictures = _pictures(next(iter(storage.get_episodes([0])))["observations"], camera, str(folder))
        notes = [LAST_FRAME_NOTE, *size_notes(pictures.shape[1:])]
        if storage.jpeg_encoding:
            notes.append("Minari stored the frames as JPEG, which is lossy")
        environment = _environment(storage.metadata.get("env_spec"))
    return Source("Minari", str(folder), environment, lengths, partial(_read, folder, camera), tuple(notes))


def _read(folder: Path, camera: str | None, number: int) -> Episode:
    name = f"{folder}, episode {number}"
    with _storage(folder) as storage:
        (episode,) = storage.get_episodes([number])
    images = _pictures(episode["observations"], camera, name)
    actions, terminations = episode["actions"], np.asarray(episode["terminations"], bool)
    if not isinstance(actions, np.ndarray):
        raise UserError(f"{name}: its actions are a {type(actions).__name__}, expected numbers; flatten them")
    if len(images) != len(actions) + 1 or terminations[:-1].any():
        raise UserError(
            f"{name}: {len(images)} observations for {len(actions)} actions, or an end before the last one; "
            "expected one observation more than actions"
        )
    return episode_of(name, images[:-1], actions, np.asarray(episode["rewards"]), bool(terminations[-1:].any()))


def _pictures(observations: Any, camera: str | None, where: str) -> np.ndarray:
    """The observations that are pictures, uint8 [N,H,W,3]."""
    found = dict(_arrays(observations, ""))
    pictures = [name for name, array in found.items() if array.dtype == np.uint8 and array.ndim == 4]
    return found[choose_camera(pictures, camera, where)]


def _arrays(observations: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(observations, Mapping):
        for key, value in observations.items():
            yield from _arrays(value, f"{name}/{key}" if name else str(key))
    elif isinstance(observations, np.ndarray):
        yield name or "observations", observations


def _environment(specification: Any) -> str | None:
    import json

    try:
        return str(json.loads(specification)["id"]) if isinstance(specification, str) else None
    except (ValueError, KeyError, TypeError):
        return None


@contextmanager
def _storage(folder: Path) -> Iterator[Any]:
    from minari.dataset.minari_storage import MinariStorage

    inner = folder / "data" if (folder / "data").is_dir() else folder
    try:
        metadata = MinariStorage.read_raw_metadata(inner)
        # Without them the library would make the environment, which imports and calls whatever the folder names.
        for space in ("observation_space", "action_space"):
            if not isinstance(metadata.get(space), str):
                raise ValueError(f"its metadata have no {space}")
        yield MinariStorage.read(inner)
    except BROKEN as error:
        raise UserError(f"{folder}: cannot be read as Minari ({error}); download or record it again") from error
