"""Sequences of known content, made in the test: what moves, why, and where it is.

`moving_shapes` has objects that move independently, `driven_square` one whose velocity is the action, and
`jumping_square` one whose motion is one of a few. The same arguments give the same sequences.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aime_fast.data.packing.pack import pack

COLOURS = np.array([(230, 60, 60), (60, 210, 70), (70, 90, 240), (230, 210, 50)], np.uint8)
"""Of the objects, in order. Every one has a channel of at least 210; backgrounds stay below 120."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """E episodes of T frames of S x S pixels."""

    frames: np.ndarray
    """uint8 [E,T,S,S,3], RGB."""
    actions: np.ndarray
    """float32 [E,T,A]; `actions[:, t]` is taken after frame t and leads to frame t+1."""
    masks: np.ndarray
    """bool [E,T,objects,S,S]: the pixels where an object is seen. Object 1 hides object 0, and so on."""
    positions: np.ndarray
    """int64 [E,T,objects,2]: row and column of the object's first pixel, before it wraps around."""
    modes: np.ndarray
    """int64 [E,T]: which of the known motions leads to frame t+1; zero where there is only one kind."""

    def write(self, folder: Path, val_episodes: int = 2) -> str:
        """Pack the episodes into the new folder of shards `folder`, the last ones for validation; returns its path."""
        recording = folder.with_suffix(".h5")
        episodes, length = self.frames.shape[:2]
        with h5py.File(recording, "w") as file:
            file["observations"] = self.frames.reshape(-1, *self.frames.shape[2:])
            file["actions"] = self.actions.reshape(episodes * length, self.actions.shape[2])
            file["episode_ends"] = np.arange(1, episodes + 1) * length
        pack(recording, folder, size=self.frames.shape[2], val_episodes=val_episodes)
        recording.unlink()
        return str(folder)


def moving_shapes(
    episodes: int = 12, length: int = 16, size: int = 32, objects: int = 2, textured: bool = False, seed: int = 0
) -> Sequences:
    """Discs and squares that move straight on and bounce off the sides, each by itself; actions are noise, A = 1.

    Object n has colour `COLOURS[n]`; even numbers are squares, odd ones discs, all a quarter of the frame wide.
    """
    draw = np.random.default_rng(seed)
    side = size // 4
    room = size - side
    start = draw.uniform(0, room, (episodes, 1, objects, 2))
    velocity = draw.uniform(0.03, 0.08, start.shape) * size * draw.choice([-1, 1], start.shape)
    straight = start + velocity * np.arange(length)[:, None, None]
    # A straight line, folded at both sides.
    positions = np.rint(np.abs((straight - room) % (2 * room) - room)).astype(np.int64)
    actions = draw.uniform(-1, 1, (episodes, length, 1))
    backgrounds = _textures(draw, episodes, size) if textured else np.full((episodes, size, size, 3), 40, np.uint8)
    stamps = [_disc(side) if number % 2 else np.ones((side, side), bool) for number in range(objects)]
    return _drawn(positions, stamps, backgrounds, actions, np.zeros((episodes, length), np.int64))


def driven_square(
    episodes: int = 12, length: int = 16, size: int = 32, speed: float = 0.15, seed: int = 0
) -> Sequences:
    """A square that each action, uniform in [-1, 1]^2, moves by action * speed * size (rows, columns) until the side.

    Nothing but the actions tells where it goes, so the actions of another window must lose.
    """
    draw = np.random.default_rng(seed)
    side = size // 4
    actions = draw.uniform(-1, 1, (episodes, length, 2)).astype(np.float32)
    places = np.empty((episodes, length, 1, 2))
    places[:, 0, 0] = draw.uniform(0, size - side, (episodes, 2))
    for frame in range(1, length):
        moved = places[:, frame - 1, 0] + actions[:, frame - 1] * speed * size
        places[:, frame, 0] = moved.clip(0, size - side)
    backgrounds = np.full((episodes, size, size, 3), 40, np.uint8)
    modes = np.zeros((episodes, length), np.int64)
    return _drawn(np.rint(places).astype(np.int64), [np.ones((side, side), bool)], backgrounds, actions, modes)


def jumps_of(modes: int, size: int) -> np.ndarray:
    """The vectors of `jumping_square`, int64 [modes,2]: a quarter of the frame long, in evenly spaced directions."""
    angles = 2 * np.pi * np.arange(modes) / modes
    return np.rint(np.stack([np.sin(angles), np.cos(angles)], axis=1) * size / 4).astype(np.int64)


def jumping_square(episodes: int = 12, length: int = 16, size: int = 32, modes: int = 3, seed: int = 0) -> Sequences:
    """A square that jumps by one of `jumps_of(modes, size)`, drawn for each frame; actions are noise, A = 1.

    It wraps around at the sides, so every jump is possible everywhere: p(frame t+1 | frame t) has `modes` equal modes.
    """
    draw = np.random.default_rng(seed)
    side = size // 4
    chosen = draw.integers(0, modes, (episodes, length))
    steps = jumps_of(modes, size)[chosen[:, :-1]]
    start = draw.integers(0, size, (episodes, 1, 2))
    positions = np.concatenate([start, start + steps.cumsum(1)], axis=1)[:, :, None]
    actions = draw.uniform(-1, 1, (episodes, length, 1))
    backgrounds = np.full((episodes, size, size, 3), 40, np.uint8)
    return _drawn(positions, [np.ones((side, side), bool)], backgrounds, actions, chosen)


def _drawn(
    positions: np.ndarray, stamps: list[np.ndarray], backgrounds: np.ndarray, actions: np.ndarray, modes: np.ndarray
) -> Sequences:
    """Each object's stamp, bool [side,side], at its positions, one over the other, on an episode's background."""
    (episodes, length, objects, _), size = positions.shape, backgrounds.shape[1]
    frames = np.repeat(backgrounds[:, None], length, axis=1)
    masks = np.zeros((episodes, length, objects, size, size), bool)
    for episode, frame, number in np.ndindex(episodes, length, objects):
        rows, columns = np.nonzero(stamps[number])
        row, column = positions[episode, frame, number]
        pixels = (rows + row) % size, (columns + column) % size
        frames[episode, frame][pixels] = COLOURS[number]
        masks[episode, frame, :, *pixels] = False
        masks[episode, frame, number][pixels] = True
    return Sequences(frames, actions.astype(np.float32), masks, positions, modes)


def _disc(side: int) -> np.ndarray:
    line = np.arange(side) - (side - 1) / 2
    return line[:, None] ** 2 + line**2 <= (side / 2) ** 2


def _textures(draw: np.random.Generator, episodes: int, size: int) -> np.ndarray:
    """Blocks of random colours, four pixels wide, one pattern an episode: uint8 [E,S,S,3] from 20 to 119."""
    blocks = draw.integers(20, 120, (episodes, -(-size // 4), -(-size // 4), 3), dtype=np.uint8)
    return blocks.repeat(4, axis=1).repeat(4, axis=2)[:, :size, :size]
