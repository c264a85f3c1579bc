"""The episodes of one split: their columns in memory; their frames in memory, mapped, or as chunks on disk."""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import torch

from aime_fast.data.action_origin import ActionOrigin, defined_by
from aime_fast.data.alignment import check_alignment
from aime_fast.data.batch import Batch
from aime_fast.data.episode import Columns
from aime_fast.data.files import SAMPLE
from aime_fast.data.shards.chunks import ChunkTable, read_chunks
from aime_fast.data.shards.manifest import CHUNK_LENGTH, MANIFEST_NAME, Manifest, episodes_of, split_of_episodes
from aime_fast.data.shards.reader import Chunk, open_shards
from aime_fast.data.shards.writer import BLOCK
from aime_fast.data.sources import Source, open_source
from aime_fast.data.streaming.reader import PIPE, Shards
from aime_fast.data.survey import FrameSurvey, Survey, action_limits
from aime_fast.data.windows import valid_starts
from aime_fast.errors import UserError

LOOKED_AT = 1500
"""Frames of a recording in which actions are looked for before training: less than a second."""
SURVEYED_CHUNKS = 256
"""Largest number of chunks that a survey reads."""


@dataclass(frozen=True, eq=False)
class HeldFrames:
    """Frames in memory or mapped, as rows of views."""

    views: list[np.ndarray]
    """uint8 [rows, S*S*3]. A mapped shard has a row for every place where a frame may start."""
    view: np.ndarray
    """int64 [episodes], the view of an episode."""
    rows: np.ndarray
    """int64 [frames], the row of each frame of all episodes end to end."""

    def take(self, episodes: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Frames [B,T], numbered over all episodes end to end, of episodes [B]: uint8 [B,T,S*S*3], copied."""
        views, rows = self.view[episodes], self.rows[frames]
        if (views == views[0]).all():
            return self.views[views[0]][rows]
        pixels = np.empty((*rows.shape, self.views[0].shape[1]), np.uint8)
        for window, (view, row) in enumerate(zip(views.tolist(), rows, strict=True)):
            pixels[window] = self.views[view][row]
        return pixels


@dataclass(frozen=True, eq=False)
class Episodes:
    """The episodes of one split."""

    description: str
    """One line: where the frames come from and how they are held."""
    environment: str | None
    image_size: int
    has_rewards: bool
    origin: ActionOrigin | None
    """What actions meant in the recording; None for shards of an older release."""
    lengths: list[int]
    """Number of frames of each episode."""
    actions: np.ndarray
    """float32 [frames,A], of all episodes end to end; likewise the other columns."""
    rewards: np.ndarray
    """float32 [frames]."""
    dones: np.ndarray
    """bool [frames]; likewise `terminated`, of those at which the task itself ended."""
    terminated: np.ndarray
    chunks: ChunkTable | None
    """None for a recording."""
    held: HeldFrames | None = None
    """None if the frames are only on disk."""
    notes: tuple[str, ...] = ()
    """What actions meant in the recording, and what reading it changes, not what packing changed: one sentence each."""

    @property
    def action_dim(self) -> int:
        """A, the size of an action."""
        return self.actions.shape[1]

    @property
    def frame_bytes(self) -> int:
        """Bytes of all frames, decoded."""
        return sum(self.lengths) * self.image_size**2 * 3

    @cached_property
    def first(self) -> np.ndarray:
        """int64 [episodes], the first frame of each among all episodes end to end."""
        return np.cumsum([0, *self.lengths[:-1]])

    def places(self, windows: np.ndarray, sequence_length: int) -> np.ndarray:
        """Frames of windows int64 [B,2] of (episode, first frame), numbered over all episodes end to end: [B,T]."""
        return (self.first[windows[:, 0]] + windows[:, 1])[:, None] + np.arange(sequence_length)

    def columns(self, places: np.ndarray) -> list[torch.Tensor]:
        """Actions, rewards, dones and terminated of these frames, copied."""
        columns = (self.actions, self.rewards, self.dones, self.terminated)
        return [torch.from_numpy(column[places]) for column in columns]

    def gather(self, windows: np.ndarray, sequence_length: int) -> Batch:
        """Windows int64 [B,2] of (episode, first frame), all `sound`, as a batch. The frames must be `held`."""
        assert self.held is not None
        places = self.places(windows, sequence_length)
        pixels = self.held.take(windows[:, 0], places).reshape(*places.shape, self.image_size, self.image_size, 3)
        return Batch(torch.from_numpy(pixels), *self.columns(places))

    def sound(self, windows: np.ndarray, sequence_length: int) -> np.ndarray:
        """Which windows touch no damaged chunk: bool [B]. `UserError` as in `ChunkTable.sound`."""
        if self.chunks is None:
            return np.ones(len(windows), bool)
        frames = windows[:, 1:] + np.arange(sequence_length)
        chunks = self.chunks.first[windows[:, :1]] + frames // CHUNK_LENGTH
        return np.logical_and.reduce(self.chunks.sound(chunks), axis=1)

    def chunk_frames(self, episode: int, start: int) -> np.ndarray:
        """Frames uint8 [n,S,S,3] of the chunk of an episode that starts at frame `start`."""
        if self.held is None:
            assert self.chunks is not None
            return self.chunks.decode(int(self.chunks.first[episode]) + start // CHUNK_LENGTH)
        length = min(CHUNK_LENGTH, self.lengths[episode] - start)
        return self.gather(np.array([[episode, start]]), length).observations[0].numpy()

    def action_range(self) -> tuple[list[float], list[float]]:
        """Least and largest value of each number of an action, [A] each, to six decimals as in a manifest."""
        low, high = self.actions.min(0).astype(np.float64), self.actions.max(0).astype(np.float64)
        return low.round(6).tolist(), high.round(6).tolist()

    def survey(self) -> Survey:
        """Look at all actions and at up to `SURVEYED_CHUNKS` evenly spaced chunks of frames, without damaged ones."""
        starts, seen = valid_starts(self.lengths, 1, CHUNK_LENGTH), FrameSurvey(self.image_size, sum(self.lengths))
        for chunk in np.linspace(0, len(starts) - 1, min(len(starts), SURVEYED_CHUNKS)).round().astype(np.int64):
            if self.sound(starts[chunk][None], 1)[0]:
                episode, start = starts[chunk].tolist()
                seen.see(episode, self.chunk_frames(episode, start))
        limits = action_limits(self.actions.min(0), self.actions.max(0)) + seen.limits()
        return Survey(seen.mean_frame(), seen.total, limits)


def open_store(
    path: str | Path | None, split: str, skips: bool = False, image_size: int | None = None, actions: str | None = None
) -> Episodes:
    """`open_episodes` with the frames held: raw shards mapped, everything else decoded into memory."""
    return hold_frames(open_episodes(path, split, skips, image_size, actions))


def open_episodes(
    path: str | Path | None, split: str, skips: bool = False, image_size: int | None = None, actions: str | None = None
) -> Episodes:
    """Open the episodes of `split` (`train`, `val` or `all`) of a folder of shards or of a recording.

    None is the shipped sample. Shards behind a command (`pipe:`, see `Shards`) and recordings are read into memory. A
    recording is split as `split_of_episodes` does, and resized to `image_size` (None: 64); `actions` is that of
    `open_source`. `skips` leaves out damaged chunks. `UserError` for a missing path, damage, an empty split, or shards
    of another size than `image_size`.
    """
    folder = SAMPLE if path is None else Path(path)
    if str(path).startswith(PIPE):
        episodes = _read_pipe(Shards(str(path), skips), split)
    elif os.path.isfile(folder / MANIFEST_NAME):
        episodes = _open_folder(folder, split, skips)
    else:
        return _read_recording(folder, split, image_size, actions)
    defined_by("aime-fast shards", actions, str(path or "the shipped sample"))
    if image_size not in (None, episodes.image_size):
        sizes = f"{episodes.image_size}x{episodes.image_size}, not {image_size}x{image_size}"
        raise UserError(f"{path}: its frames are {sizes}; pack it again with --size {image_size}")
    return episodes


def _open_folder(folder: Path, split: str, skips: bool) -> Episodes:
    manifest, readers = open_shards(folder)
    entries = manifest.entries(split, folder)
    table, chunks = read_chunks(readers, manifest, entries, skips)
    columns, lengths = [chunk.columns for chunk in chunks], [entry.length for entry in entries]
    return _episodes(manifest, f"{folder}, {manifest.codec}", lengths, columns, table)


def hold_frames(episodes: Episodes) -> Episodes:
    """The same episodes with their frames held: raw chunks mapped, others decoded into memory."""
    if episodes.held is not None:
        return episodes
    table = episodes.chunks
    assert table is not None
    if table.codec.name == "raw":
        how = f"{episodes.description} frames mapped ({episodes.frame_bytes / 1e6:.1f} MB)"
        return replace(episodes, description=how, held=_map(table, episodes.image_size))
    how = f"{episodes.description} decoded into memory"
    held, how = _hold(map(table.decode, range(len(table))), episodes.lengths, episodes.image_size, how)
    return replace(episodes, description=how, held=held)


def _read_recording(path: Path, split: str, image_size: int | None, actions: str | None) -> Episodes:
    source = open_source(path, size=image_size, actions=actions)
    numbers = episodes_of(split, split_of_episodes(len(source.lengths)), path)
    parts: list[Columns] = []

    def pixels() -> Iterator[np.ndarray]:
        for number in numbers:
            episode = source.checked(number, parts[0][0].shape[1] if parts else None)
            parts.append(episode.columns)
            yield episode.observations

    lengths = [source.lengths[number] for number in numbers]
    held, how = _hold(pixels(), lengths, source.image_size, f"{source.where}, read into memory")
    episodes = _episodes(source, how, lengths, parts, None, held)
    if split == "val":  # the training episodes are asked
        return episodes
    alignment = check_alignment(zip(_frames(episodes), (part[0] for part in parts), strict=True), LOOKED_AT)
    return replace(episodes, notes=(*episodes.notes, *filter(None, [alignment.warning])))


def _frames(episodes: Episodes) -> Iterator[np.ndarray]:
    """The held frames of each episode, uint8 [N,S,S,3]."""
    for number, length in enumerate(episodes.lengths):
        yield episodes.gather(np.array([[number, 0]]), length).observations[0].numpy()


def _read_pipe(shards: Shards, split: str) -> Episodes:
    """The episodes of `split` of shards that can only be read forwards, in memory."""
    manifest = shards.manifest
    entries = manifest.entries(split, shards.place)
    wanted = {entry.id for entry in entries}
    chunks: list[Chunk] = []
    damaged: list[bool] = []

    def pixels() -> Iterator[np.ndarray]:
        numbers = sorted({entry.shard for entry in entries})
        for streamed in shards.chunks(shards.read_with_webdataset, numbers):
            if streamed.entry.id in wanted:
                yield shards.frames(streamed)
                chunks.append(streamed.chunk)
                damaged.append(streamed.damaged)

    lengths = [entry.length for entry in entries]
    how = f"{shards.place}, {manifest.codec} read into memory"
    held, how = _hold(pixels(), lengths, manifest.image_size, how)
    table = ChunkTable([], manifest, entries, chunks, damaged, shards.skips)
    return _episodes(manifest, how, lengths, [chunk.columns for chunk in chunks], table, held)


def _episodes(
    data: Manifest | Source,
    how: str,
    lengths: list[int],
    parts: list[Columns],
    chunks: ChunkTable | None,
    held: HeldFrames | None = None,
) -> Episodes:
    actions, rewards, dones, terminated = map(np.concatenate, zip(*parts, strict=True))
    facts = (data.environment, data.image_size, data.has_rewards, data.origin)
    told = data.notes if isinstance(data, Source) else ()
    warned = [data.alignment.warning] if isinstance(data, Manifest) and data.alignment else []
    notes = (*([data.origin.line] if data.origin else []), *filter(None, warned), *told)
    return Episodes(how, *facts, lengths, actions, rewards, dones, terminated, chunks, held, notes)


def _hold(pixels: Iterable[np.ndarray], lengths: list[int], size: int, how: str) -> tuple[HeldFrames, str]:
    """All frames, which `pixels` yields as uint8 [n,S,S,3], in memory, and `how` with their size.

    `UserError` that starts with `how`, before anything is read, if they do not fit.
    """
    frames, frame_bytes = sum(lengths), size**2 * 3
    needed, free = frames * frame_bytes, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{how} needs {needed / 1e9:.1f} GB but {free / 1e9:.1f} GB are free; "
            "pack it with codec raw, which is mapped from disk"
        )
    held, done = np.empty((frames, frame_bytes), np.uint8), 0
    for piece in pixels:
        held[done : done + len(piece)] = piece.reshape(len(piece), frame_bytes)
        done += len(piece)
    return HeldFrames([held], np.zeros(len(lengths), np.int64), np.arange(frames)), f"{how} ({needed / 1e6:.1f} MB)"


def _map(table: ChunkTable, size: int) -> HeldFrames:
    """The frames of raw shards, mapped. Members start at blocks of the tar file, so every frame starts at a row."""
    frame = size**2 * 3
    step = math.gcd(BLOCK, frame)
    starts = [
        offset // step + frame // step * np.arange(table.shape(chunk)[0])
        for chunk, offset in enumerate(table.offset.tolist())
    ]
    views = []
    for data in (reader.data for reader in table.readers):
        shape = (max((len(data) - frame) // step + 1, 0), frame)
        views.append(np.lib.stride_tricks.as_strided(data, shape, (step, 1), writeable=False))
    return HeldFrames(views, np.array([entry.shard for entry in table.entries], np.int64), np.concatenate(starts))
