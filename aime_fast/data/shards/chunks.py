"""The stored pixels of chunks: checked at first use, decoded, and marked if damaged."""

import logging
import zlib
from collections.abc import Sequence

import numpy as np

from aime_fast.data.shards.codecs import CODECS, Codec, Shape
from aime_fast.data.shards.manifest import CHUNK_LENGTH, EpisodeEntry, Manifest
from aime_fast.data.shards.reader import Chunk, ShardReader, chunk_place
from aime_fast.errors import UserError

_log = logging.getLogger(__name__)


def skip_or_raise(error: UserError, skips: bool) -> None:
    """Raise `error`, or log it as one line where damaged chunks are skipped."""
    if not skips:
        raise error
    _log.warning("skipped: %s", error)


def check_stored(stored: bytes | memoryview, crc32: int, codec: Codec, shape: Shape, where: str) -> None:
    """Raise `UserError` unless the stored pixels have this checksum and their header fits frames of this shape."""
    if zlib.crc32(stored) != crc32:
        raise UserError(f"{where}: the pixels are damaged (wrong crc32); copy or pack it again")
    try:
        codec.check(stored, shape)
    except ValueError as error:
        raise _damaged(where, error) from error


def decode_stored(stored: bytes | memoryview, codec: Codec, shape: Shape, where: str) -> np.ndarray:
    """Frames uint8 of this shape from pixels that passed `check_stored`; `UserError` if they cannot be decoded."""
    try:
        return codec.decode(stored, shape)
    except ValueError as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: ValueError) -> UserError:
    return UserError(f"{where}: the pixels are damaged ({error}); copy or pack it again")


def window_parts(start: int, length: int) -> list[tuple[int, int, int]]:
    """The chunks that a window of an episode touches: (chunk, first frame in it, number of frames), in order."""
    stop = start + length
    parts = []
    for number in range(start // CHUNK_LENGTH, -(-stop // CHUNK_LENGTH)):
        offset = number * CHUNK_LENGTH
        first, end = max(start - offset, 0), min(stop - offset, CHUNK_LENGTH)
        parts.append((number, first, end - first))
    return parts


class ChunkTable:
    """The chunks of a split's episodes end to end, numbered from 0; their pixels stay on disk."""

    def __init__(
        self,
        readers: list[ShardReader],
        manifest: Manifest,
        entries: list[EpisodeEntry],
        chunks: Sequence[Chunk],
        damaged: Sequence[bool],
        skips: bool,
    ) -> None:
        """`chunks` are those of `entries` in order, `damaged` marks each of them; `skips` is that of `skip_or_raise`.

        Without `readers` the pixels were checked before, and cannot be read here.
        """
        self.codec, self.readers, self.entries = CODECS[manifest.codec], readers, entries
        self._manifest, self._skips = manifest, skips
        counts = [entry.chunks for entry in entries]
        self._episode = np.repeat(np.arange(len(entries)), counts)
        self._shard = np.repeat([entry.shard for entry in entries], counts)
        self.first = np.cumsum([0, *counts[:-1]])
        """int64 [episodes], first chunk of each."""
        self.offset = np.array([chunk.offset for chunk in chunks], np.int64)
        """int64 [chunks], in bytes; likewise `size`."""
        self.size = np.array([chunk.size for chunk in chunks], np.int64)
        self.crc32 = np.array([chunk.crc32 for chunk in chunks], np.int64)
        self.damaged = np.array(damaged, bool)
        """bool [chunks], found damaged."""
        self.checked = self.damaged.copy() if readers else np.ones(len(self), bool)
        """bool [chunks], pixels compared with their checksum."""

    def __len__(self) -> int:
        return len(self._episode)

    def _locate(self, chunk: int) -> tuple[EpisodeEntry, int]:
        """The episode of a chunk, and the chunk's number in it."""
        episode = self._episode[chunk]
        return self.entries[episode], chunk - int(self.first[episode])

    def shape(self, chunk: int) -> Shape:
        """Shape of the frames of a chunk: (n, S, S, 3)."""
        return self._manifest.shape(*self._locate(chunk))

    def where(self, chunk: int) -> str:
        """Shard, episode and frames of a chunk, for error messages."""
        return chunk_place(self.readers[self._shard[chunk]].path, *self._locate(chunk))

    def stored(self, chunk: int) -> np.ndarray:
        """The stored pixels, uint8 [size], mapped and not copied."""
        reader = self.readers[self._shard[chunk]]
        reader.check_length()
        return reader.data[self.offset[chunk] : self.offset[chunk] + self.size[chunk]]

    def parts(self, episode: int, start: int, length: int) -> list[tuple[int, int, int]]:
        """The chunks that a window touches, as in `window_parts`."""
        first = int(self.first[episode])
        return [(first + number, frame, count) for number, frame, count in window_parts(start, length)]

    def sound(self, chunks: np.ndarray) -> np.ndarray:
        """Which of the chunks (int64, any shape) are not damaged: bool, same shape. They are checked at first use.

        `UserError` for a damaged chunk where these are not skipped, and for a shard that was cut after it was opened.
        """
        if self.readers:
            for shard in set(self._shard[chunks].ravel().tolist()):
                self.readers[shard].check_length()
        if not self.checked[chunks].all():
            for chunk in np.unique(chunks[~self.checked[chunks]]).tolist():
                stored, crc32 = self.stored(chunk).data, int(self.crc32[chunk])
                try:
                    check_stored(stored, crc32, self.codec, self.shape(chunk), self.where(chunk))
                except UserError as error:
                    self._found(chunk, error)
                self.checked[chunk] = True
        return ~self.damaged[chunks]

    def decode(self, chunk: int) -> np.ndarray:
        """Frames uint8 [n,S,S,3] of a chunk; zeros for a damaged one where these are skipped."""
        if self.sound(np.array([chunk]))[0]:
            stored = self.stored(chunk).data
            try:
                return decode_stored(stored, self.codec, self.shape(chunk), self.where(chunk))
            except UserError as error:
                self._found(chunk, error)
        return np.zeros(self.shape(chunk), np.uint8)

    def finds_damage(self, chunk: int) -> bool:
        """Decode a chunk; whether it proves to be damaged only now."""
        known = self.damaged[chunk]
        self.decode(chunk)
        return bool(self.damaged[chunk] & ~known)

    def _found(self, chunk: int, error: UserError) -> None:
        """Mark a damaged chunk; raise `error` where these are not skipped."""
        skip_or_raise(error, self._skips)
        self.damaged[chunk] = True


def read_chunks(
    readers: list[ShardReader], manifest: Manifest, entries: list[EpisodeEntry], skips: bool = False
) -> tuple[ChunkTable, list[Chunk]]:
    """The table of these episodes' chunks, and the chunks; a damaged one, where it is skipped, has columns of zeros."""
    damaged: list[bool] = []
    chunks: list[Chunk] = []
    for entry in entries:
        reader = readers[entry.shard]
        for number in range(entry.chunks):
            try:
                chunks.append(reader.chunk(entry, number))
                damaged.append(False)
            except UserError as error:
                skip_or_raise(error, skips)
                chunks.append(blank_chunk(entry.chunk_frames(number), manifest.action_dim))
                damaged.append(True)
    return ChunkTable(readers, manifest, entries, chunks, damaged, skips), chunks


def blank_chunk(n: int, action_dim: int) -> Chunk:
    """Stands in for a damaged chunk of n frames: no pixels, and columns of zeros."""
    return Chunk(0, 0, 0, np.zeros((n, action_dim), np.float32), np.zeros(n, np.float32), np.zeros(n, np.uint8))
