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
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from aime_fast.data.episode import Episode
from aime_fast.data.shards.codecs import Codec
from aime_fast.data.shards.manifest import CHUNK_LENGTH, EpisodeEntry, ShardEntry, action_moments

BLOCK = tarfile.BLOCKSIZE
TERMINATED, TRUNCATED = 1, 2

WrittenShard = tuple[ShardEntry, list[EpisodeEntry], list[np.ndarray]]
"""A shard, the entries of its episodes, and the `action_moments` of each."""


def chunk_name(episode: int, number: int) -> str:
    """Stem of the members of chunk `number` of `episode`."""
    return f"{episode:06d}_{number * CHUNK_LENGTH:06d}"


def member_endings(codec: Codec) -> tuple[str, ...]:
    """Endings of a chunk's members, in their order in the shard."""
    return (codec.extension, "act", "rew", "flags", "meta")


def chunk_members(episode: Episode, place: int, number: int, codec: Codec) -> dict[str, bytes]:
    """The members, by ending, of chunk `number` of `episode`, which has number `place`."""
    start = number * CHUNK_LENGTH
    window = slice(start, start + CHUNK_LENGTH)
    flags = episode.terminated[window] * TERMINATED + episode.truncated[window] * TRUNCATED
    members = {
        codec.extension: codec.encode(np.ascontiguousarray(episode.observations[window])),
        "act": episode.actions[window].astype("<f4").tobytes(),
        "rew": episode.rewards[window].astype("<f4").tobytes(),
        "flags": flags.astype(np.uint8).tobytes(),
    }
    checksums = {ending: zlib.crc32(data) for ending, data in members.items()}
    meta = {"episode": place, "start": start, "length": len(flags), "crc32": checksums}
    members["meta"] = json.dumps(meta, separators=(",", ":")).encode()
    return members


def write_shard(folder: Path, number: int, codec: Codec, episodes: Iterable[tuple[int, Episode, str]]) -> WrittenShard:
    """Write episodes, each with its number and split, into shard `number`. The bytes depend on nothing else."""
    path, digest = folder / f"shard-{number:06d}.tar", hashlib.sha256()
    entries, moments, index = [], [], list[str]()
    with path.open("xb") as file:

        def put(data: bytes) -> int:
            """Append `data`, padded to blocks, and return its first byte."""
            offset = file.tell()
            for part in (data, bytes(-len(data) % BLOCK)):
                file.write(part)
                digest.update(part)
            return offset

        for place, episode, split in episodes:
            entries.append(EpisodeEntry(place, len(episode), number, len(index), split))
            moments.append(action_moments(episode.actions))
            for chunk in range(entries[-1].chunks):
                columns = []
                for ending, data in chunk_members(episode, place, chunk, codec).items():
                    header = tarfile.TarInfo(f"{chunk_name(place, chunk)}.{ending}")
                    header.size = len(data)
                    put(header.tobuf(tarfile.USTAR_FORMAT))
                    columns.append(f"{ending} {put(data)} {len(data)} {header.name}")
                index.append(" ".join(columns))
        # The end as `tar` writes it: two empty blocks, padded to a record.
        put(bytes(2 * BLOCK))
        put(bytes(-file.tell() % tarfile.RECORDSIZE))
        size = file.tell()
    lines = "".join(f"{line}\n" for line in [f"v1.2 {len(index)}", *index]).encode()
    path.with_suffix(".idx").write_bytes(lines)
    shard = ShardEntry(path.name, len(index), size, digest.hexdigest(), hashlib.sha256(lines).hexdigest())
    return shard, entries, moments
