"""Reading shards: every byte that leaves here has been checked against its crc32, or will be at first use."""

import json
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aime_fast.data.episode import FRAME_BYTES
from aime_fast.data.files import check_file
from aime_fast.data.shards.codecs import CODECS, Codec
from aime_fast.data.shards.manifest import STRIP_LENGTH, EpisodeEntry, Manifest, ShardEntry, load_manifest
from aime_fast.data.shards.writer import BLOCK, TERMINATED, TRUNCATED, member_endings, strip_name
from aime_fast.errors import UserError


@dataclass(frozen=True, eq=False)
class Strip:
    """Up to 16 consecutive frames of one episode, with the pixels still as stored."""

    where: str
    """Shard, episode and first frame, for messages."""
    frames: int
    offset: int
    """First byte of the pixels in the shard."""
    size: int
    crc32: int
    """Checksum of the stored pixels, not yet compared."""
    actions: np.ndarray
    """float32 [frames,A]."""
    rewards: np.ndarray
    """float32 [frames]."""
    terminated: np.ndarray
    """bool [frames]."""
    truncated: np.ndarray
    """bool [frames]."""


class ShardReader:
    """One mapped shard and its index; `UserError` naming the file when either is missing, cut or damaged."""

    def __init__(self, folder: Path, manifest: Manifest, shard: ShardEntry) -> None:
        self.path = folder / shard.file
        self._manifest = manifest
        self._codec = CODECS[manifest.codec]
        try:
            with check_file(self.path, shard.bytes).open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            index = check_file(self.path.with_suffix(".idx")).read_bytes()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); copy or pack it again") from error
        self.data = np.frombuffer(self._map, np.uint8)
        """The whole file, uint8 [bytes], mapped and not copied."""
        self._lines = self._check_index(index, shard)

    def check_length(self) -> None:
        """Raise `UserError` when the file has been cut since it was mapped: touching what is gone ends the process."""
        if self._map.size() < len(self.data):
            raise UserError(f"{self.path}: was cut to {self._map.size()} bytes while in use; copy or pack it again")

    def _check_index(self, index: bytes, shard: ShardEntry) -> list[str]:
        """The index's lines, one a strip."""
        lines = index.decode("utf-8", "replace").splitlines()
        if not index.endswith(b"\n") or lines[0] != f"v1.2 {shard.samples}" or len(lines) != shard.samples + 1:
            raise UserError(
                f"{self.path.with_suffix('.idx')}: not an index of {shard.samples} strips; copy or pack the data again"
            )
        return lines[1:]

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""
        return self._manifest.action_dim

    def strips(self, episode: EpisodeEntry) -> Iterator[Strip]:
        """The strips of `episode`, in order, everything but their pixels checked."""
        return (self.strip(episode, number) for number in range(episode.strips))

    def strip(self, episode: EpisodeEntry, number: int) -> Strip:
        """Strip `number` of `episode`, everything but its pixels checked."""
        self.check_length()
        where, places = strip_place(self.path, episode, number), self.places(episode, number)
        pixels = places.pop(self._codec.extension)
        parts = {ending: self.data[offset : offset + size].tobytes() for ending, (offset, size) in places.items()}
        return strip_of_members(parts, pixels, self._manifest, episode, number, where)

    def places(self, episode: EpisodeEntry, number: int) -> dict[str, tuple[int, int]]:
        """Ending -> (offset, size) of the members of a strip, which its line of the index must name exactly."""
        where, stem = strip_place(self.path, episode, number), strip_name(episode.id, number * STRIP_LENGTH)
        columns = self._lines[episode.first_sample + number].split(" ")
        endings = member_endings(self._codec)
        if columns[::4] != list(endings) or columns[3::4] != [f"{stem}.{ending}" for ending in endings]:
            names = [name for name in columns[3::4] if name.startswith("/") or ".." in name.split("/")]
            reason = f"name {names[0]!r} leads out of the folder" if names else "members are missing or misnamed"
            raise UserError(f"{where}: in the index, {reason}; copy or pack the data again")
        try:
            places = {
                ending: (int(offset), int(size))
                for ending, offset, size in zip(endings, columns[1::4], columns[2::4], strict=True)
            }
        except ValueError:
            raise UserError(f"{where}: the index holds no numbers; copy or pack the data again") from None
        for offset, size in places.values():
            if offset < BLOCK or offset % BLOCK or size < 0 or offset + size > len(self.data):
                raise UserError(f"{where}: the index points outside the shard; copy or pack the data again")
        return places

    def pixels(self, strip: Strip) -> np.ndarray:
        """Decoded frames of `strip`, uint8 [frames,64,64,3]; `UserError` when its checksum or picture is wrong."""
        self.check_length()
        stored = self.data[strip.offset : strip.offset + strip.size].tobytes()
        check_pixels(stored, strip.crc32, strip.where)
        return decode_strip(stored, strip, self._codec)


def strip_place(shard: Path | str, episode: EpisodeEntry, number: int) -> str:
    """Shard, episode and frames of strip `number`, for messages."""
    start = number * STRIP_LENGTH
    return f"{shard}, episode {episode.id}, frames {start} to {min(start + STRIP_LENGTH, episode.length) - 1}"


def strip_of_members(
    parts: dict[str, bytes],
    pixels: tuple[int, int],
    manifest: Manifest,
    episode: EpisodeEntry,
    number: int,
    where: str,
) -> Strip:
    """Strip `number` of `episode` from its members but the pixels, which lie at (offset, size).

    `UserError` beginning with `where` when the members are damaged, or belong to another strip.
    """
    codec, start = CODECS[manifest.codec], number * STRIP_LENGTH
    frames, width = min(STRIP_LENGTH, episode.length - start), manifest.action_dim
    expected = {"episode": episode.id, "start": start, "length": frames}
    try:
        meta = json.loads(parts["meta"])
        checksums = {ending: int(meta["crc32"][ending]) for ending in member_endings(codec) if ending != "meta"}
        described = {key: meta[key] for key in expected}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise UserError(f"{where}: the meta member is damaged; copy or pack the data again") from None
    if described != expected:
        raise UserError(f"{where}: the strip says it is {described}; copy or pack the data again")
    sizes = {ending: len(part) for ending, part in parts.items()} | {codec.extension: pixels[1]}
    wanted = {"act": 4 * frames * width, "rew": 4 * frames, "flags": frames}
    if codec.name == "raw":
        wanted[codec.extension] = frames * FRAME_BYTES
    for ending, size in wanted.items():
        if sizes[ending] != size:
            raise UserError(
                f"{where}: {ending} has {sizes[ending]} bytes, expected {size}; copy or pack the data again"
            )
        if ending in parts and zlib.crc32(parts[ending]) != checksums[ending]:
            raise UserError(f"{where}: {ending} is damaged (wrong crc32); copy or pack the data again")
    flags = np.frombuffer(parts["flags"], np.uint8)
    strip = Strip(
        where,
        frames,
        *pixels,
        checksums[codec.extension],
        actions=np.frombuffer(parts["act"], "<f4").reshape(frames, width),
        rewards=np.frombuffer(parts["rew"], "<f4"),
        terminated=flags & TERMINATED > 0,
        truncated=flags & TRUNCATED > 0,
    )
    _check_values(strip, last=start + frames == episode.length)
    return strip


def _check_values(strip: Strip, last: bool) -> None:
    """Raise `UserError` for what packing refuses, so that shards another program wrote are held to the same rules."""
    for name, values in (("actions", strip.actions), ("rewards", strip.rewards)):
        if not np.isfinite(values).all():
            raise UserError(f"{strip.where}: {name} hold NaN or infinity; pack a mended recording again")
    ends = strip.terminated | strip.truncated
    if ends[: len(ends) - last].any():
        raise UserError(f"{strip.where}: a frame is marked as the end, but the episode goes on; pack the data again")


def check_pixels(stored: bytes | memoryview, crc32: int, where: str) -> None:
    """Raise `UserError` unless the stored pixels have this checksum."""
    if zlib.crc32(stored) != crc32:
        raise UserError(f"{where}: the pixels are damaged (wrong crc32); copy or pack the data again")


def check_picture(stored: bytes, strip: Strip, codec: Codec) -> None:
    """Raise `UserError` unless the header of the stored pixels is that of the strip's frames."""
    try:
        codec.check(stored, strip.frames)
    except ValueError as error:
        raise damaged_pixels(strip.where, error) from error


def decode_strip(stored: bytes, strip: Strip, codec: Codec) -> np.ndarray:
    """Frames uint8 [frames,64,64,3] of the stored pixels of `strip`, whose checksum was compared; `UserError` when
    they cannot be decoded.
    """
    try:
        return codec.decode(stored, strip.frames)
    except ValueError as error:
        raise damaged_pixels(strip.where, error) from error


def damaged_pixels(where: str, error: ValueError) -> UserError:
    """What is told of pixels whose checksum is right and which cannot be decoded."""
    return UserError(f"{where}: the pixels are damaged ({error}); copy or pack the data again")


def open_shards(folder: Path) -> tuple[Manifest, list[ShardReader]]:
    """The checked manifest of a folder of shards, and a reader of each shard."""
    manifest = load_manifest(folder)
    return manifest, [ShardReader(folder, manifest, shard) for shard in manifest.shards]
