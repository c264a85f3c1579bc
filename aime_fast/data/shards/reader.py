"""Reading one shard. Every byte is compared with its crc32: the pixels at first use, everything else here."""

import json
import mmap
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aime_fast.data.episode import Columns
from aime_fast.data.files import check_file
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.manifest import CHUNK_LENGTH, EpisodeEntry, Manifest, ShardEntry, load_manifest
from aime_fast.data.shards.writer import BLOCK, TERMINATED, TRUNCATED, chunk_name, member_endings
from aime_fast.errors import UserError


@dataclass(frozen=True, eq=False)
class Chunk:
    """Up to 16 consecutive frames of one episode; the pixels stay as stored."""

    offset: int
    """First byte of the stored pixels in the shard."""
    size: int
    """Bytes of the stored pixels."""
    crc32: int
    """Checksum of the stored pixels, not yet compared."""
    actions: np.ndarray
    """float32 [n,A]."""
    rewards: np.ndarray
    """float32 [n]."""
    flags: np.ndarray
    """uint8 [n]: 1 terminated, 2 truncated."""

    @property
    def columns(self) -> Columns:
        """Actions, rewards, dones and terminated."""
        return self.actions, self.rewards, self.flags > 0, self.flags & 1 > 0


class ShardReader:
    """One mapped shard and its index; `UserError` names the file if either is missing, cut or damaged."""

    def __init__(self, folder: Path, manifest: Manifest, shard: ShardEntry) -> None:
        self.path = folder / shard.file
        index_path = self.path.with_suffix(".idx")
        self._manifest, self._codec = manifest, CODECS[manifest.codec]
        try:
            with check_file(self.path, shard.bytes).open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            index = check_file(index_path).read_bytes()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); copy or pack it again") from error
        self.data = np.frombuffer(self._map, np.uint8)
        """The whole file, uint8 [bytes], mapped and not copied."""
        head, *self._lines = index.decode("utf-8", "replace").splitlines() or [""]
        if not index.endswith(b"\n") or head != f"v1.2 {shard.samples}" or len(self._lines) != shard.samples:
            raise UserError(f"{index_path}: not an index of {shard.samples} chunks; copy or pack it again")

    def check_length(self) -> None:
        """Raise `UserError` if the file was cut after it was mapped. Touching the missing part ends the process."""
        if self._map.size() < len(self.data):
            raise UserError(f"{self.path}: was cut to {self._map.size()} bytes while in use; copy or pack it again")

    def chunk(self, episode: EpisodeEntry, number: int) -> Chunk:
        """Chunk `number` of `episode`, with everything but its pixels checked."""
        self.check_length()
        where, places = chunk_place(self.path, episode, number), self.places(episode, number)
        pixels = places.pop(self._codec.extension)
        parts = {ending: self.data[offset : offset + size].tobytes() for ending, (offset, size) in places.items()}
        return chunk_of_members(parts, pixels, self._manifest, episode, number, where)

    def places(self, episode: EpisodeEntry, number: int) -> dict[str, tuple[int, int]]:
        """(offset, size) of each member of a chunk, by ending. Its line of the index must name exactly these."""
        where, stem = chunk_place(self.path, episode, number), chunk_name(episode.id, number)
        columns = self._lines[episode.first_sample + number].split(" ")
        endings = member_endings(self._codec)
        if columns[::4] != list(endings) or columns[3::4] != [f"{stem}.{ending}" for ending in endings]:
            names = [name for name in columns[3::4] if name.startswith("/") or ".." in name.split("/")]
            reason = f"name {names[0]!r} leads out of the folder" if names else "members are missing or misnamed"
            raise UserError(f"{where}: in the index, {reason}; copy or pack it again")
        try:
            numbers = zip(map(int, columns[1::4]), map(int, columns[2::4]), strict=True)
            places = dict(zip(endings, numbers, strict=True))
        except ValueError:
            raise UserError(f"{where}: the index holds no numbers; copy or pack it again") from None
        for offset, size in places.values():
            if offset < BLOCK or offset % BLOCK or size < 0 or offset + size > len(self.data):
                raise UserError(f"{where}: the index points outside the shard; copy or pack it again")
        return places


def chunk_place(shard: Path | str, episode: EpisodeEntry, number: int) -> str:
    """Shard, episode and frames of chunk `number`, for error messages."""
    start = number * CHUNK_LENGTH
    return f"{shard}, episode {episode.id}, frames {start} to {start + episode.chunk_frames(number) - 1}"


def chunk_of_members(
    parts: dict[str, bytes], pixels: tuple[int, int], manifest: Manifest, episode: EpisodeEntry, number: int, where: str
) -> Chunk:
    """Chunk `number` of `episode` from its members. `parts` has all but the pixels, which lie at (offset, size).

    `UserError` that starts with `where` if the members are damaged or belong to another chunk.
    """
    codec, shape, width = CODECS[manifest.codec], manifest.shape(episode, number), manifest.action_dim
    start, frames = number * CHUNK_LENGTH, shape[0]
    expected = {"episode": episode.id, "start": start, "length": frames}
    try:
        meta = json.loads(parts["meta"])
        checksums = {ending: int(meta["crc32"][ending]) for ending in member_endings(codec) if ending != "meta"}
        described = {key: meta[key] for key in expected}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise UserError(f"{where}: the meta member is damaged; copy or pack it again") from None
    if described != expected:
        raise UserError(f"{where}: the chunk says it is {described}; copy or pack it again")
    sizes = {ending: len(part) for ending, part in parts.items()} | {codec.extension: pixels[1]}
    wanted = {"act": 4 * frames * width, "rew": 4 * frames, "flags": frames}
    if codec.name == "raw":
        wanted[codec.extension] = int(np.prod(shape))
    for ending, size in wanted.items():
        if sizes[ending] != size:
            raise UserError(f"{where}: {ending} has {sizes[ending]} bytes, expected {size}; copy or pack it again")
        if ending in parts and zlib.crc32(parts[ending]) != checksums[ending]:
            raise UserError(f"{where}: {ending} is damaged (wrong crc32); copy or pack it again")
    actions = np.frombuffer(parts["act"], "<f4").reshape(frames, width)
    rewards = np.frombuffer(parts["rew"], "<f4")
    flags = np.frombuffer(parts["flags"], np.uint8) & (TERMINATED | TRUNCATED)
    # Packing refuses such values. Shards that another program wrote must satisfy the same rules.
    for name, values in (("actions", actions), ("rewards", rewards)):
        if not np.isfinite(values).all():
            raise UserError(f"{where}: {name} hold NaN or infinity; fix the recording and pack it again")
    last = start + frames == episode.length
    if flags[: frames - last].any():
        raise UserError(f"{where}: a frame is marked as the end, but the episode goes on; pack the data again")
    return Chunk(*pixels, checksums[codec.extension], actions, rewards, flags)


def open_shards(folder: Path) -> tuple[Manifest, list[ShardReader]]:
    """The checked manifest of a folder of shards, and a reader of each shard."""
    manifest = load_manifest(folder)
    return manifest, [ShardReader(folder, manifest, shard) for shard in manifest.shards]
