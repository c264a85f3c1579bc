"""Minari data sets, read with Minari's own library."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.action_origin import defined_by
from aime_fast.data.episode import Episode
from aime_fast.data.files import refuse_pointer
from aime_fast.data.sources.frames import LAST_FRAME_NOTE, choose_camera, episode_of, last_of_stacks, picture_notes
from aime_fast.data.sources.source import Pictures, Source, readable, require
from aime_fast.errors import UserError


def open_minari(folder: Path, pictures: Pictures) -> Source:
    """Open a data set's folder, where observations are pictures, or a dict with some; `UserError` if there are none.

    An episode has one observation more than actions; the last one is left out.
    """
    require("minari", "minari", folder)
    with _storage(folder) as storage:
        count = storage.total_episodes
        if count < 1:
            raise UserError(f"{folder}: there are no episodes in it")
        lengths = [int(row["total_steps"]) for row in storage.get_episode_metadata(range(count))]
        images = _images(next(iter(storage.get_episodes([0])))["observations"], pictures, str(folder))
        notes = [LAST_FRAME_NOTE, *picture_notes(images, pictures, str(folder))]
        if storage.jpeg_encoding:
            notes.append("Minari stored the frames as JPEG, which is lossy")
        environment = None
        with suppress(ValueError, KeyError, TypeError):
            environment = str(json.loads(storage.metadata.get("env_spec"))["id"])
    read = partial(_read, folder, pictures)
    origin = defined_by("Minari", pictures.actions, str(folder))
    facts = ("Minari", str(folder), environment, lengths, pictures.size, read, tuple(notes))
    return Source(*facts, origin=origin)


def _read(folder: Path, pictures: Pictures, number: int) -> Episode:
    name = f"{folder}, episode {number}"
    with _storage(folder) as storage:
        (episode,) = storage.get_episodes([number])
    images = _images(episode["observations"], pictures, name)
    actions, terminations = episode["actions"], np.asarray(episode["terminations"], bool)
    if not isinstance(actions, np.ndarray):
        raise UserError(f"{name}: its actions are a {type(actions).__name__}, expected numbers; flatten them")
    if len(images) != len(actions) + 1 or terminations[:-1].any():
        raise UserError(
            f"{name}: {len(images)} observations for {len(actions)} actions, or an end before the last one; "
            "expected one observation more than actions"
        )
    rewards, terminated = np.asarray(episode["rewards"]), bool(terminations[-1:].any())
    images = last_of_stacks(images[:-1], pictures)
    return episode_of(name, images, pictures.size, actions, rewards, terminated)


def _images(observations: Any, pictures: Pictures, where: str) -> np.ndarray:
    """The observations that are pictures, uint8 [N,H,W,C]."""
    found = dict(_arrays(observations, ""))
    names = [name for name, array in found.items() if array.dtype == np.uint8 and array.ndim == 4]
    return found[choose_camera(names, pictures.camera, where)]


def _arrays(observations: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(observations, Mapping):
        for key, value in observations.items():
            yield from _arrays(value, f"{name}/{key}" if name else str(key))
    elif isinstance(observations, np.ndarray):
        yield name or "observations", observations


@contextmanager
def _storage(folder: Path) -> Iterator[Any]:
    from minari.dataset.minari_storage import MinariStorage

    inner = folder / "data" if (folder / "data").is_dir() else folder
    for name in ("metadata.json", "main_data.hdf5"):
        refuse_pointer(inner / name)
    with readable(folder, "Minari"):
        metadata = MinariStorage.read_raw_metadata(inner)
        # Without them the library would create the environment: it would import and call what the folder names.
        for space in ("observation_space", "action_space"):
            if not isinstance(metadata.get(space), str):
                raise ValueError(f"its metadata have no {space}")
        yield MinariStorage.read(inner)
