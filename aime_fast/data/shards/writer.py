"""Writing shards: USTAR tar files of 16-frame chunks, each with an index.

A chunk of episode `e` that starts at frame `s` is five members named `<e>_<s>.<ending>`, six digits each: the pixels
(ending and bytes by codec), `act` (float32 [n,A]), `rew` (float32 [n]), `flags` (uint8 [n]: 1 terminated, 2 truncated),
all little endian, and `meta` (JSON: episode, start, length, and the crc32 of the other four). The index has DALI's
format `v1.2`.
"""

import hashlib
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np

from aime_fast.data.episode import Episode
from aime_fast.data.shards.codecs import Codec
from aime_fast.data.shards.manifest import CHUNK_LENGTH, EpisodeEntry, ShardEntry

BLOCK = tarfile.BLOCKSIZE
TERMINATED, TRUNCATED = 1, 2


def chunk_name(episode: int, start: int) -> str:
    """Stem of the members of the chunk of `episode` that starts at frame `start`."""
    return f"{episode:06d}_{start:06d}"


def member_endings(codec: Codec) -> tuple[str, ...]:
    """Endings of a chunk's members, in their order in the shard."""
    return (codec.extension, "act", "rew", "flags", "meta")


def chunk_members(episode: Episode, number: int, start: int, codec: Codec) -> dict[str, bytes]:
    """The members, by ending, of the chunk that starts at frame `start` of episode `number`."""
    window = slice(start, start + CHUNK_LENGTH)
    flags = episode.terminated[window] * TERMINATED + episode.truncated[window] * TRUNCATED
    members = {
        codec.extension: codec.encode(np.ascontiguousarray(episode.observations[window])),
        "act": episode.actions[window].astype("<f4").tobytes(),
        "rew": episode.rewards[window].astype("<f4").tobytes(),
        "flags": flags.astype(np.uint8).tobytes(),
    }
    checksums = {ending: zlib.crc32(data) for ending, data in members.items()}
    meta = {"episode": number, "start": start, "length": len(flags), "crc32": checksums}
    members["meta"] = json.dumps(meta, separators=(",", ":")).encode()
    return members


class ShardWriter:
    """Writes episodes in order into one shard. The files depend on the episodes alone, not on machine or time."""

    entry: ShardEntry
    """The finished shard; set at the end of the `with` block."""

    def __init__(self, folder: Path, codec: Codec, number: int) -> None:
        self._path, self._number, self._codec = folder / f"shard-{number:06d}.tar", number, codec
        self._file = self._path.open("xb")
        self._hash = hashlib.sha256()
        self._index: list[str] = []

    def add(self, episode: Episode, number: int, split: str) -> EpisodeEntry:
        """Write episode `number` and return its entry for the manifest."""
        entry = EpisodeEntry(number, len(episode), self._number, len(self._index), split)
        for start in range(0, len(episode), CHUNK_LENGTH):
            members = chunk_members(episode, number, start, self._codec)
            name = chunk_name(number, start)
            self._index.append(" ".join(self._write(f"{name}.{ending}", data) for ending, data in members.items()))
        return entry

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the shard; after an error only close the file."""
        with self._file:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        """End the file as `tar` does (two empty blocks, padded to a record) and write the index."""
        self._put(bytes(2 * BLOCK))
        self._put(bytes(-self._file.tell() % tarfile.RECORDSIZE))
        size = self._file.tell()
        index = "".join(f"{line}\n" for line in [f"v1.2 {len(self._index)}", *self._index]).encode()
        self._path.with_suffix(".idx").write_bytes(index)
        checksums = self._hash.hexdigest(), hashlib.sha256(index).hexdigest()
        self.entry = ShardEntry(self._path.name, len(self._index), size, *checksums)

    def _write(self, name: str, data: bytes) -> str:
        """Append one member and return its index entry: ending, offset of the data, size, name."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._put(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._file.tell()
        self._put(data)
        self._put(bytes(-len(data) % BLOCK))
        return f"{name.partition('.')[2]} {offset} {len(data)} {name}"

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
