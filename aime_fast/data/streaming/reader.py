"""Chunks from shards that are only read forwards: files, or the output of commands."""

import os
import tarfile
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.files import check_file
from aime_fast.data.libraries import load_dali, load_webdataset
from aime_fast.data.shards.chunks import blank_chunk, check_stored, decode_stored, skip_or_raise
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.manifest import MANIFEST_NAME, EpisodeEntry, Manifest, load_manifest, parse_manifest
from aime_fast.data.shards.reader import Chunk, ShardReader, chunk_of_members, chunk_place
from aime_fast.data.shards.writer import chunk_name, member_endings
from aime_fast.errors import UserError

PIPE = "pipe:"
MEMBER_BATCH = 16
"""Number of chunks that DALI reads at a time."""

Members = tuple[str, dict[str, bytes]]
"""Stem of a chunk's members, and their bytes by ending."""
ReadMembers = Callable[[list[int]], Iterator[Members]]
"""The members of every chunk of the given shards, in order."""


@dataclass(eq=False)
class StreamedChunk:
    """One chunk in memory, with its pixels as stored."""

    chunk: Chunk
    entry: EpisodeEntry
    number: int
    """Number of the chunk in its episode."""
    where: str
    stored: bytes
    damaged: bool = False
    """Found damaged, where damaged chunks are skipped."""
    decoded: np.ndarray | None = None
    """uint8 [n,S,S,3], set by `Shards.frames`."""


class Shards:
    """Shards at a place: a folder, or `pipe:COMMAND` with `{}` where the command takes a file's name."""

    def __init__(self, place: str | Path, skips: bool = False) -> None:
        """Read the manifest; `UserError` if that fails. `skips` marks and logs damaged chunks instead of an error."""
        self.place = str(place)
        self.piped = self.place.startswith(PIPE)
        if self.piped and "{}" not in self.place:
            raise UserError(f"{self.place}: write {{}} where the command takes the name, as in 'pipe:cat folder/{{}}'")
        self.manifest: Manifest = self._piped_manifest() if self.piped else load_manifest(Path(place))
        self.codec = CODECS[self.manifest.codec]
        self.skips = skips
        self._damaged: set[tuple[int, int]] = set()
        self._chunks: list[list[tuple[EpisodeEntry, int]]] = [[] for _ in self.manifest.shards]
        for entry in self.manifest.episodes:
            self._chunks[entry.shard] += [(entry, number) for number in range(entry.chunks)]

    def _piped_manifest(self) -> Manifest:
        wds = load_webdataset()
        url = self.locate(MANIFEST_NAME)
        try:
            with wds.gopen(url) as stream:
                content = stream.read()
        except OSError as error:
            raise UserError(f"{url}: the command failed ({error}); try it in a shell") from error
        return parse_manifest(content, url)

    def locate(self, name: str) -> str:
        """Path of a file, or the command that prints it."""
        return self.place.replace("{}", name) if self.piped else os.path.join(self.place, name)

    def chunks(self, read: ReadMembers, shards: list[int]) -> Iterator[StreamedChunk]:
        """Every chunk of the shards in order, checked against the manifest; `UserError` for damage, unless skipped."""
        members = read(shards)
        for shard in shards:
            where = self.locate(self.manifest.shards[shard].file)
            for entry, number in self._chunks[shard]:
                yield self._chunk(next(members, None), chunk_place(where, entry, number), entry, number)

    def _chunk(self, members: Members | None, where: str, entry: EpisodeEntry, number: int) -> StreamedChunk:
        if members is None:
            raise UserError(f"{where}: the shard ends before it; copy or pack it again")
        stem, parts = members
        if stem != chunk_name(entry.id, number) or set(parts) != set(member_endings(self.codec)):
            raise UserError(f"{where}: found {stem} with {', '.join(parts)} there; copy or pack it again")
        stored = parts.pop(self.codec.extension)
        try:
            chunk = chunk_of_members(parts, (0, len(stored)), self.manifest, entry, number, where)
            check_stored(stored, chunk.crc32, self.codec, self.manifest.shape(entry, number), where)
            return StreamedChunk(chunk, entry, number, where, stored, damaged=(entry.id, number) in self._damaged)
        except UserError as error:
            blank = blank_chunk(entry.chunk_frames(number), self.manifest.action_dim)
            streamed = StreamedChunk(blank, entry, number, where, stored)
            self._found(streamed, error)
            return streamed

    def frames(self, streamed: StreamedChunk) -> np.ndarray:
        """Frames uint8 [n,S,S,3] of a chunk, decoded once; zeros for a damaged one where these are skipped."""
        shape = self.manifest.shape(streamed.entry, streamed.number)
        if streamed.decoded is None and not streamed.damaged:
            try:
                streamed.decoded = decode_stored(streamed.stored, self.codec, shape, streamed.where)
            except UserError as error:
                self._found(streamed, error)
        return np.zeros(shape, np.uint8) if streamed.decoded is None else streamed.decoded

    def stored(self, streamed: StreamedChunk) -> np.ndarray:
        """The stored pixels, uint8 [bytes], not copied."""
        return np.frombuffer(streamed.stored, np.uint8)

    def finds_damage(self, streamed: StreamedChunk) -> bool:
        """Decode a chunk; whether it proves to be damaged only now."""
        known = streamed.damaged
        self.frames(streamed)
        return streamed.damaged and not known

    def _found(self, streamed: StreamedChunk, error: UserError) -> None:
        """Mark a damaged chunk, and log it the first time; raise where these are not skipped."""
        key = (streamed.entry.id, streamed.number)
        if key not in self._damaged:
            skip_or_raise(error, self.skips)
            self._damaged.add(key)
        streamed.damaged = True

    def read_with_webdataset(self, shards: list[int]) -> Iterator[Members]:
        """`ReadMembers` by the WebDataset library: local files and the output of commands."""
        # Single stages of it: its ready-made pipeline would also split and shuffle, which the order has done already.
        wds = load_webdataset()
        for shard in shards:
            url, left = self.locate(self.manifest.shards[shard].file), self.manifest.shards[shard].samples
            if not self.piped:
                check_file(Path(url), self.manifest.shards[shard].bytes)
            streams = _opened(url)
            try:
                for sample in wds.tariterators.group_by_keys(wds.tariterators.tar_file_expander(streams)):
                    if left == 0:
                        raise UserError(f"{url}: holds more chunks than the manifest says; copy or pack it again")
                    left -= 1
                    yield sample["__key__"], {name: sample[name] for name in sample if not name.startswith("__")}
            except (OSError, ValueError, tarfile.TarError) as error:
                # WebDataset appends its own objects to the error.
                reason = str(error.args[0] if len(error.args) > 1 and not isinstance(error, OSError) else error)
                reason = " ".join(reason.partition(" @ ")[0].split())
                raise UserError(f"{url}: cannot be read ({reason}); copy or pack it again") from error
            finally:
                streams.close()

    def read_with_dali(self, shards: list[int]) -> Iterator[Members]:
        """`ReadMembers` by DALI's reader of WebDataset shards: local files with their index."""
        dali = load_dali()
        paths = [self.locate(self.manifest.shards[shard].file) for shard in shards]
        endings = member_endings(self.codec)
        pipeline = dali.Pipeline(batch_size=MEMBER_BATCH, num_threads=1, device_id=None, prefetch_queue_depth=2)
        with pipeline:
            pipeline.set_outputs(
                *dali.fn.readers.webdataset(
                    paths=paths,
                    index_paths=[str(Path(path).with_suffix(".idx")) for path in paths],
                    ext=list(endings),
                    missing_component_behavior="error",
                    stick_to_shard=True,
                    # A mapped file that is cut while it is read would end the process.
                    dont_use_mmap=True,
                    pad_last_batch=True,
                    # Buffers of members grow from here; DALI's default is 1 MB for each of `MEMBER_BATCH` times five.
                    tensor_init_bytes=4096,
                )
            )
        for shard in shards:
            # DALI does not check the index.
            reader = ShardReader(Path(self.place), self.manifest, self.manifest.shards[shard])
            for entry, number in self._chunks[shard]:
                reader.places(entry, number)
        # The reader gives no names; the `meta` member shows whether a chunk is the right one.
        chunks = [chunk for shard in shards for chunk in self._chunks[shard]]
        try:
            pipeline.build()
            for first in range(0, len(chunks), MEMBER_BATCH):
                outputs = [output.as_cpu() for output in pipeline.run()]
                for row, (entry, number) in enumerate(chunks[first : first + MEMBER_BATCH]):
                    parts = [np.asarray(output.at(row)).tobytes() for output in outputs]
                    yield chunk_name(entry.id, number), dict(zip(endings, parts, strict=True))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.place}: DALI cannot read a shard ({reason}); copy or pack it again") from error


def _opened(url: str) -> Generator[dict[str, Any], None, None]:
    """WebDataset's record of an open stream. The exit status of a command is checked at the end."""
    stream = load_webdataset().gopen(url)
    try:
        yield {"url": url, "stream": stream}
    except GeneratorExit:
        # Closed early: the command may then fail to write, which is no error.
        with suppress(OSError):
            stream.close()
        raise
    while stream.read(1 << 16):
        pass
    stream.close()
