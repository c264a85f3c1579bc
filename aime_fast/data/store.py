"""Every frame of one split within reach: mapped shards, or arrays in memory, behind one gather."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from aime_fast.data.batch import Batch
from aime_fast.data.episode import FRAME_BYTES, FRAME_SHAPE, Episode
from aime_fast.data.manifest import MANIFEST_NAME, STRIP_LENGTH, EpisodeEntry, Manifest, split_of_episodes
from aime_fast.data.shard_reader import ShardReader, Strip, check_pixels, open_shards
from aime_fast.data.shards import BLOCK
from aime_fast.data.sources import open_source
from aime_fast.errors import UserError

SAMPLE = Path(__file__).with_name("sample")
SPLITS = ("train", "val", "all")


@dataclass(frozen=True, eq=False)
class MappedStrips:
    """Pixels of raw strips that are still on disk, each checked when a window first touches it."""

    readers: list[ShardReader]
    shard: np.ndarray
    """int64 [strips]."""
    offset: np.ndarray
    """int64 [strips], in bytes."""
    size: np.ndarray
    """int64 [strips], in bytes."""
    crc32: np.ndarray
    """int64 [strips]."""
    checked: np.ndarray
    """bool [strips]."""
    first: np.ndarray
    """int64 [episodes], first strip of each."""
    names: list[str]
    """Shard, episode and frames of each strip, for messages."""

    def check(self, episodes: np.ndarray, frames: np.ndarray) -> None:
        """Compare the crc32 of every strip of these windows (episodes [B,1], frames [B,T]) not yet compared."""
        strips = self.first[episodes] + frames // STRIP_LENGTH
        if self.checked[strips].all():
            return
        for strip in np.unique(strips[~self.checked[strips]]).tolist():
            data = self.readers[self.shard[strip]].data
            check_pixels(data, self.offset[strip], self.size[strip], self.crc32[strip], self.names[strip])
            self.checked[strip] = True


@dataclass(frozen=True, eq=False)
class FrameStore:
    """The episodes of one split; `gather` copies windows of them into a batch."""

    description: str
    """One line: where the frames come from and how they are held."""
    environment: str | None
    lengths: list[int]
    """Frames of each episode."""
    planes: list[np.ndarray]
    """Views uint8 [rows, 64*64*3] whose rows hold the frames; a mapped shard has one row starting at every block."""
    plane: np.ndarray
    """int64 [episodes], the view that holds an episode."""
    rows: np.ndarray
    """int64 [frames], row of each frame of all episodes end to end."""
    first: np.ndarray
    """int64 [episodes], first frame of each in `rows`, `actions`, `rewards` and `dones`."""
    actions: np.ndarray
    """float32 [frames,A]."""
    rewards: np.ndarray
    """float32 [frames]."""
    dones: np.ndarray
    """bool [frames]."""
    mapped: MappedStrips | None = None

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""
        return self.actions.shape[1]

    def mean_frame(self, at_most: int = 4096) -> torch.Tensor:
        """Mean of up to `at_most` frames, evenly spread over the split: float32 [3, 64, 64] in [-1, 1]."""
        total = sum(self.lengths)
        places = np.linspace(0, total - 1, min(total, at_most)).round().astype(np.int64)
        episodes = np.searchsorted(self.first, places, side="right") - 1
        windows = np.stack([episodes, places - self.first[episodes]], 1)
        levels = sum(
            self.gather(part, 1).observations.sum((0, 1), dtype=torch.float64)
            for part in np.array_split(windows, -(-len(windows) // 256))
        )
        return (torch.as_tensor(levels) / (len(windows) * 127.5) - 1.0).movedim(-1, 0).float()

    def gather(self, windows: np.ndarray, sequence_length: int) -> Batch:
        """Windows int64 [B,2] of (episode, first frame) as a batch of T = `sequence_length` frames, copied.

        `UserError` when a mapped strip that is touched for the first time is damaged.
        """
        episodes, starts = windows[:, :1], windows[:, 1:]
        frames = starts + np.arange(sequence_length)
        if self.mapped:
            self.mapped.check(episodes, frames)
        places = self.first[episodes] + frames
        pixels = self._pixels(self.plane[windows[:, 0]], self.rows[places])
        return Batch(
            torch.from_numpy(pixels.reshape(*frames.shape, *FRAME_SHAPE)),
            *(torch.from_numpy(column[places]) for column in (self.actions, self.rewards, self.dones)),
        )

    def _pixels(self, planes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows [B,T] of the planes [B]: uint8 [B,T,64*64*3]."""
        if (planes == planes[0]).all():
            return self.planes[planes[0]][rows]
        pixels = np.empty((*rows.shape, FRAME_BYTES), np.uint8)
        for window, (plane, row) in enumerate(zip(planes.tolist(), rows, strict=True)):
            pixels[window] = self.planes[plane][row]
        return pixels


def open_store(path: str | Path | None, split: str) -> FrameStore:
    """Open the episodes of `split` (`train`, `val` or `all`) of a folder of shards or of a recording.

    None is the recorded sample that ships with the project. Raw shards are mapped, everything else is decoded once
    into memory. A recording has no split of its own: its last fifth of episodes, at least one, is for validation.
    `UserError` for a path that is missing or damaged, or a split without episodes.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    folder = SAMPLE if path is None else Path(path)
    if os.path.isfile(folder / MANIFEST_NAME):
        return _store_of_shards(folder, split)
    source = open_source(folder)
    splits = split_of_episodes(len(source.lengths), None, None)
    _check_split(splits, split, folder)
    chosen = [episode for episode, own in zip(source.read(), splits, strict=True) if split in (own, "all")]
    how = f"{source.where}, read into memory"
    return _store_of_arrays(chosen, [episode.observations for episode in chosen], how, source.environment)


def _check_split(splits: Sequence[str], split: str, where: Path) -> None:
    if split != "all" and split not in splits:
        raise UserError(
            f"{where}: none of its {len(splits)} episodes is in split {split!r}; pack it with another split"
        )


def _store_of_shards(folder: Path, split: str) -> FrameStore:
    manifest, readers = open_shards(folder)
    _check_split([entry.split for entry in manifest.episodes], split, folder)
    entries = [entry for entry in manifest.episodes if split in (entry.split, "all")]
    strips = [list(readers[entry.shard].strips(entry)) for entry in entries]
    if manifest.codec == "raw":
        return _store_of_mapped(folder, manifest, readers, entries, strips)
    decoded = (readers[entry.shard].pixels(strip) for entry, own in zip(entries, strips, strict=True) for strip in own)
    columns = [_StripColumns(own) for own in strips]
    how = f"{folder}, {manifest.codec} decoded into memory"
    return _store_of_arrays(columns, decoded, how, manifest.environment)


class _StripColumns:
    """The columns of one episode's strips, joined; stands in for an `Episode` whose pixels are elsewhere."""

    def __init__(self, strips: list[Strip]) -> None:
        self.actions = np.concatenate([strip.actions for strip in strips])
        self.rewards = np.concatenate([strip.rewards for strip in strips])
        self.terminated = np.concatenate([strip.terminated for strip in strips])
        self.truncated = np.concatenate([strip.truncated for strip in strips])


def _store_of_arrays(
    columns: Sequence[Episode | _StripColumns], pixels: Iterable[np.ndarray], how: str, environment: str | None
) -> FrameStore:
    """A store whose frames are one array in memory; `pixels` yields them in order, in pieces of any length."""
    lengths = [len(column.rewards) for column in columns]
    needed, free = sum(lengths) * FRAME_BYTES, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{how} needs {needed / 1e9:.1f} GB but {free / 1e9:.1f} GB are free; "
            "pack it with codec raw, which is mapped from disk"
        )
    frames = np.empty((sum(lengths), FRAME_BYTES), np.uint8)
    done = 0
    for piece in pixels:
        frames[done : done + len(piece)] = piece.reshape(len(piece), FRAME_BYTES)
        done += len(piece)
    return FrameStore(
        description=f"{how} ({frames.nbytes / 1e6:.1f} MB)",
        environment=environment,
        planes=[frames],
        plane=np.zeros(len(lengths), np.int64),
        rows=np.arange(len(frames)),
        **_join(columns, lengths),
    )


def _store_of_mapped(
    folder: Path, manifest: Manifest, readers: list[ShardReader], entries: list[EpisodeEntry], strips: list[list[Strip]]
) -> FrameStore:
    """A store whose frames stay in the mapped shards: a frame starts at a block, so a row begins at every block."""
    every = [strip for own in strips for strip in own]
    shard = np.array([entry.shard for entry in entries], np.int64)
    counts = [len(own) for own in strips]
    offset = np.array([strip.offset for strip in every], np.int64)
    blocks = FRAME_BYTES // BLOCK
    rows = [strip.offset // BLOCK + blocks * np.arange(strip.frames) for strip in every]
    columns = [_StripColumns(own) for own in strips]
    lengths = [entry.length for entry in entries]
    return FrameStore(
        description=f"{folder}, raw frames mapped ({sum(lengths) * FRAME_BYTES / 1e6:.1f} MB)",
        environment=manifest.environment,
        planes=[_frame_at_every_block(reader.data) for reader in readers],
        plane=shard,
        rows=np.concatenate(rows),
        mapped=MappedStrips(
            readers,
            shard=np.repeat(shard, counts),
            offset=offset,
            size=np.array([strip.size for strip in every], np.int64),
            crc32=np.array([strip.crc32 for strip in every], np.int64),
            checked=np.zeros(len(every), bool),
            first=np.cumsum([0, *counts[:-1]]),
            names=[strip.where for strip in every],
        ),
        **_join(columns, lengths),
    )


def _join(columns: Sequence[Episode | _StripColumns], lengths: list[int]) -> dict[str, Any]:
    return {
        "lengths": lengths,
        "first": np.cumsum([0, *lengths[:-1]]),
        "actions": np.concatenate([column.actions for column in columns]),
        "rewards": np.concatenate([column.rewards for column in columns]),
        "dones": np.concatenate([column.terminated | column.truncated for column in columns]),
    }


def _frame_at_every_block(data: np.ndarray) -> np.ndarray:
    """View uint8 [rows, 64*64*3] of a file: row i is the frame that would start at block i. No copy."""
    rows = (len(data) - FRAME_BYTES) // BLOCK + 1
    return np.lib.stride_tricks.as_strided(data, (max(rows, 0), FRAME_BYTES), (BLOCK, 1), writeable=False)
