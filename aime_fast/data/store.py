"""The episodes of one split within reach: their columns in memory, their frames mapped, decoded, or still in strips."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from aime_fast.data.batch import Batch
from aime_fast.data.episode import FRAME_BYTES, FRAME_SHAPE, Episode
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.manifest import MANIFEST_NAME, STRIP_LENGTH, split_of_episodes
from aime_fast.data.shards.reader import Strip, open_shards
from aime_fast.data.shards.strips import StripTable, read_strips
from aime_fast.data.shards.writer import BLOCK
from aime_fast.data.sources import open_source
from aime_fast.data.streaming.reader import PIPE, Shards
from aime_fast.errors import UserError

SAMPLE = Path(__file__).with_name("sample")
SPLITS = ("train", "val", "all")
MEAN_STRIPS = 256
"""Strips whose frames the mean frame is taken over, at most."""


@dataclass(frozen=True, eq=False)
class Episodes:
    """The episodes of one split: their columns, and their frames as strips on disk where they come from shards."""

    description: str
    """One line: where the frames come from and how they are held."""
    environment: str | None
    lengths: list[int]
    """Frames of each episode."""
    first: np.ndarray
    """int64 [episodes], first frame of each among all episodes end to end, as in the columns."""
    actions: np.ndarray
    """float32 [frames,A]."""
    rewards: np.ndarray
    """float32 [frames]."""
    dones: np.ndarray
    """bool [frames]."""
    strips: StripTable | None
    """None for a recording."""

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""
        return self.actions.shape[1]

    @property
    def frame_bytes(self) -> int:
        """Bytes of all frames, decoded."""
        return sum(self.lengths) * FRAME_BYTES

    def places(self, windows: np.ndarray, sequence_length: int) -> np.ndarray:
        """Frames of windows int64 [B,2] of (episode, first frame) among all episodes' end to end: int64 [B,T]."""
        return (self.first[windows[:, 0]] + windows[:, 1])[:, None] + np.arange(sequence_length)

    def columns(self, places: np.ndarray) -> list[torch.Tensor]:
        """Actions, rewards and dones of these frames, copied."""
        return [torch.from_numpy(column[places]) for column in (self.actions, self.rewards, self.dones)]

    def sound(self, windows: np.ndarray, sequence_length: int) -> np.ndarray:
        """Which windows touch no damaged strip: bool [B]. Strips touched for the first time are checked.

        `UserError` for a damaged strip unless those are skipped.
        """
        if self.strips is None:
            return np.ones(len(windows), bool)
        frames = windows[:, 1:] + np.arange(sequence_length)
        strips = self.strips.first[windows[:, :1]] + frames // STRIP_LENGTH
        return np.logical_and.reduce(self.strips.sound(strips), axis=1)

    def strip_frames(self, episode: int, number: int) -> np.ndarray:
        """Frames uint8 [n,64,64,3] of one strip."""
        assert self.strips is not None
        return self.strips.decode(int(self.strips.first[episode]) + number)

    def mean_frame(self) -> torch.Tensor:
        """Mean of the sound frames of up to `MEAN_STRIPS` strips evenly spread: float32 [3, 64, 64] in [-1, 1].

        Levels are summed as integers: every back-end of the same data finds the same bits.
        """
        counts = [-(-length // STRIP_LENGTH) for length in self.lengths]
        ends = np.cumsum(counts)
        levels, frames = np.zeros(FRAME_SHAPE, np.int64), 0
        for strip in np.linspace(0, ends[-1] - 1, min(ends[-1], MEAN_STRIPS)).round().astype(np.int64).tolist():
            episode = int(np.searchsorted(ends, strip, side="right"))
            number = strip - int(ends[episode]) + counts[episode]
            window = np.array([[episode, number * STRIP_LENGTH]])
            if self.sound(window, 1)[0]:
                pixels = self.strip_frames(episode, number)
                levels += pixels.sum(0, dtype=np.int64)
                frames += len(pixels)
        return (torch.from_numpy(levels).double() / (max(frames, 1) * 127.5) - 1.0).movedim(-1, 0).float()


@dataclass(frozen=True, eq=False)
class FrameStore(Episodes):
    """Episodes whose frames are mapped or in memory; `gather` copies windows of them into a batch."""

    planes: list[np.ndarray]
    """Views uint8 [rows, 64*64*3] whose rows hold the frames; a mapped shard has one row starting at every block."""
    plane: np.ndarray
    """int64 [episodes], the view that holds an episode."""
    rows: np.ndarray
    """int64 [frames], row of each frame of all episodes end to end."""

    def gather(self, windows: np.ndarray, sequence_length: int) -> Batch:
        """Windows int64 [B,2] of (episode, first frame), all `sound`, as a batch of T = `sequence_length` frames."""
        places = self.places(windows, sequence_length)
        pixels = self._pixels(self.plane[windows[:, 0]], self.rows[places])
        return Batch(torch.from_numpy(pixels.reshape(*places.shape, *FRAME_SHAPE)), *self.columns(places))

    def _pixels(self, planes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows [B,T] of the planes [B]: uint8 [B,T,64*64*3]."""
        if (planes == planes[0]).all():
            return self.planes[planes[0]][rows]
        pixels = np.empty((*rows.shape, FRAME_BYTES), np.uint8)
        for window, (plane, row) in enumerate(zip(planes.tolist(), rows, strict=True)):
            pixels[window] = self.planes[plane][row]
        return pixels

    def strip_frames(self, episode: int, number: int) -> np.ndarray:
        """Frames uint8 [n,64,64,3] of one strip."""
        start = number * STRIP_LENGTH
        length = min(STRIP_LENGTH, self.lengths[episode] - start)
        return self.gather(np.array([[episode, start]]), length).observations[0].numpy()


def open_store(path: str | Path | None, split: str, skips: bool = False) -> FrameStore:
    """`open_episodes` with every frame within reach: raw shards mapped, everything else decoded into memory."""
    return within_reach(open_episodes(path, split, skips))


def open_episodes(path: str | Path | None, split: str, skips: bool = False) -> Episodes:
    """Open the episodes of `split` (`train`, `val` or `all`) of a folder of shards or of a recording.

    None is the recorded sample that ships with the project. Shards behind a command (`pipe:`, see `Shards`) and
    recordings are read into memory (`FrameStore`); a recording has no split of its own: its last fifth of episodes, at
    least one, is for validation. `skips` leaves damaged strips out instead of raising. `UserError` for a path that is
    missing or damaged, or a split without episodes.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if str(path).startswith(PIPE):
        return _read_pipe(Shards(str(path), skips), split, skips)
    folder = SAMPLE if path is None else Path(path)
    if os.path.isfile(folder / MANIFEST_NAME):
        manifest, readers = open_shards(folder)
        check_split([entry.split for entry in manifest.episodes], split, folder)
        entries = [entry for entry in manifest.episodes if split in (entry.split, "all")]
        table, strips = read_strips(readers, entries, CODECS[manifest.codec], skips)
        columns = join_columns(map(StripColumns, strips))
        return Episodes(f"{folder}, {manifest.codec}", manifest.environment, **columns, strips=table)
    source = open_source(folder)
    splits = split_of_episodes(len(source.lengths), None, None)
    check_split(splits, split, folder)
    chosen = [episode for episode, own in zip(source.read(), splits, strict=True) if split in (own, "all")]
    columns, how = join_columns(chosen), f"{source.where}, read into memory"
    held = hold((episode.observations for episode in chosen), sum(columns["lengths"]), how)
    how = f"{how} ({held.nbytes / 1e6:.1f} MB)"
    return FrameStore(how, source.environment, **columns, strips=None, **_one_plane(held, columns))


def within_reach(episodes: Episodes) -> FrameStore:
    """The same episodes with their frames within reach: raw strips mapped, others decoded into memory."""
    if isinstance(episodes, FrameStore):
        return episodes
    table, common = episodes.strips, vars(episodes)
    assert table is not None
    if table.codec.name != "raw":
        how = f"{episodes.description} decoded into memory"
        held = hold((table.decode(strip) for strip in range(len(table.offset))), sum(episodes.lengths), how)
        return FrameStore(
            **{**common, "description": f"{how} ({held.nbytes / 1e6:.1f} MB)"}, **_one_plane(held, common)
        )
    blocks = FRAME_BYTES // BLOCK
    counts = [table.frames(strip) for strip in range(len(table.offset))]
    rows = [offset // BLOCK + blocks * np.arange(n) for offset, n in zip(table.offset.tolist(), counts, strict=True)]
    how = f"{episodes.description} frames mapped ({episodes.frame_bytes / 1e6:.1f} MB)"
    return FrameStore(
        **{**common, "description": how},
        planes=[_frame_at_every_block(reader.data) for reader in table.readers],
        plane=np.array([entry.shard for entry in table.entries], np.int64),
        rows=np.concatenate(rows),
    )


def _read_pipe(shards: Shards, split: str, skips: bool) -> FrameStore:
    """The episodes of `split` of shards that can only be read forwards, in memory."""
    manifest = shards.manifest
    check_split([entry.split for entry in manifest.episodes], split, shards.place)
    entries = [entry for entry in manifest.episodes if split in (entry.split, "all")]
    frames, how = sum(entry.length for entry in entries), f"{shards.place}, {manifest.codec} read into memory"
    wanted = {entry.id for entry in entries}
    strips: list[Strip] = []
    damaged: list[bool] = []

    def pixels() -> Iterator[np.ndarray]:
        numbers = sorted({entry.shard for entry in entries})
        for streamed in shards.strips(shards.read_with_webdataset, numbers):
            if streamed.key[0] in wanted:
                yield shards.frames(streamed)
                strips.append(streamed.strip)
                damaged.append(streamed.damaged)

    held = hold(pixels(), frames, how)
    firsts = np.cumsum([0, *(entry.strips for entry in entries)])
    columns = join_columns(StripColumns(strips[a:b]) for a, b in pairwise(firsts.tolist()))
    nowhere = np.zeros(len(strips), np.int64)
    table = StripTable(
        CODECS[manifest.codec],
        readers=[],
        entries=entries,
        first=firsts[:-1],
        offset=nowhere,
        size=nowhere,
        crc32=nowhere,
        checked=np.ones(len(strips), bool),
        damaged=np.array(damaged),
        skips=skips,
    )
    how = f"{how} ({held.nbytes / 1e6:.1f} MB)"
    return FrameStore(how, manifest.environment, **columns, strips=table, **_one_plane(held, columns))


class StripColumns:
    """The columns of one episode's strips, joined; stands in for an `Episode` whose pixels are elsewhere."""

    def __init__(self, strips: list[Strip]) -> None:
        self.actions = np.concatenate([strip.actions for strip in strips])
        self.rewards = np.concatenate([strip.rewards for strip in strips])
        self.terminated = np.concatenate([strip.terminated for strip in strips])
        self.truncated = np.concatenate([strip.truncated for strip in strips])


def join_columns(episodes: Iterable[Episode | StripColumns]) -> dict[str, Any]:
    """The fields of `Episodes` that are joined over episodes."""
    every = list(episodes)
    lengths = [len(episode.rewards) for episode in every]
    return {
        "lengths": lengths,
        "first": np.cumsum([0, *lengths[:-1]]),
        "actions": np.concatenate([episode.actions for episode in every]),
        "rewards": np.concatenate([episode.rewards for episode in every]),
        "dones": np.concatenate([episode.terminated | episode.truncated for episode in every]),
    }


def hold(pixels: Iterable[np.ndarray], frames: int, how: str) -> np.ndarray:
    """All frames in memory, uint8 [frames, 64*64*3]; `pixels` yields them in order, in pieces of any length.

    `UserError`, beginning with `how`, before anything is read when they do not fit.
    """
    needed, free = frames * FRAME_BYTES, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{how} needs {needed / 1e9:.1f} GB but {free / 1e9:.1f} GB are free; "
            "pack it with codec raw, which is mapped from disk"
        )
    held = np.empty((frames, FRAME_BYTES), np.uint8)
    done = 0
    for piece in pixels:
        held[done : done + len(piece)] = piece.reshape(len(piece), FRAME_BYTES)
        done += len(piece)
    return held


def check_split(splits: Sequence[str], split: str, where: Path | str) -> None:
    """`UserError` unless some episode is in `split`; `splits` are the episodes' own."""
    if split != "all" and split not in splits:
        raise UserError(
            f"{where}: none of its {len(splits)} episodes is in split {split!r}; pack it with another split"
        )


def _one_plane(held: np.ndarray, columns: dict[str, Any]) -> dict[str, Any]:
    return {"planes": [held], "plane": np.zeros(len(columns["lengths"]), np.int64), "rows": np.arange(len(held))}


def _frame_at_every_block(data: np.ndarray) -> np.ndarray:
    """View uint8 [rows, 64*64*3] of a file: row i is the frame that would start at block i. No copy."""
    rows = (len(data) - FRAME_BYTES) // BLOCK + 1
    return np.lib.stride_tricks.as_strided(data, (max(rows, 0), FRAME_BYTES), (BLOCK, 1), writeable=False)
