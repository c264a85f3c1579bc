"""Strips read one after another from shards that are only read forwards: files or the output of commands."""

import os
import tarfile
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.episode import FRAME_SHAPE
from aime_fast.data.files import check_file
from aime_fast.data.libraries import load_dali, load_webdataset
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.manifest import (
    MANIFEST_NAME,
    STRIP_LENGTH,
    EpisodeEntry,
    Manifest,
    load_manifest,
    parse_manifest,
)
from aime_fast.data.shards.reader import (
    ShardReader,
    Strip,
    check_picture,
    check_pixels,
    decode_strip,
    strip_of_members,
    strip_place,
)
from aime_fast.data.shards.strips import blank_strip, skip_or_raise
from aime_fast.data.shards.writer import member_endings, strip_name
from aime_fast.errors import UserError

PIPE = "pipe:"
MEMBER_BATCH = 16
"""Strips that DALI reads at a time."""

Members = tuple[str, dict[str, bytes]]
"""Stem of a strip's members, and their bytes by ending."""
ReadMembers = Callable[[list[int]], Iterator[Members]]
"""The members of every strip of the given shards, in order."""


@dataclass(eq=False)
class StreamedStrip:
    """One strip in memory, its pixels as stored."""

    strip: Strip
    key: tuple[int, int]
    """Episode, and place in it."""
    stored: bytes
    damaged: bool = False
    """Found damaged and skipped."""
    decoded: np.ndarray | None = None
    """uint8 [frames,64,64,3], once `Shards.frames` was asked for them."""


class Shards:
    """Shards at a place that is a folder, or `pipe:COMMAND` with `{}` where the command takes a file's name."""

    def __init__(self, place: str | Path, skips: bool = False) -> None:
        """Read the manifest; `UserError` when that fails."""
        self.place = str(place)
        """Folder, or `pipe:` and the command."""
        self.piped = self.place.startswith(PIPE)
        if self.piped and "{}" not in self.place:
            raise UserError(
                f"{self.place}: write {{}} where the command takes the name of a file, as in 'pipe:cat folder/{{}}'"
            )
        self.manifest: Manifest = self._piped_manifest() if self.piped else load_manifest(Path(place))
        self.skips = skips
        """Whether damaged strips are marked and logged instead of raised."""
        self._damaged: set[tuple[int, int]] = set()
        self._episodes: list[list[EpisodeEntry]] = [[] for _ in self.manifest.shards]
        for entry in self.manifest.episodes:
            self._episodes[entry.shard].append(entry)

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

    def strips(self, read: ReadMembers, shards: list[int]) -> Iterator[StreamedStrip]:
        """Every strip of the shards in order, checked.

        `UserError` when a shard ends early or holds other strips than the manifest says, and for a damaged strip
        unless those are skipped.
        """
        members = read(shards)
        for shard in shards:
            where = self.locate(self.manifest.shards[shard].file)
            for entry, number in self._strips_of(shard):
                yield self._strip(next(members, None), strip_place(where, entry, number), entry, number)

    def frames(self, streamed: StreamedStrip) -> np.ndarray:
        """Frames uint8 [n,64,64,3] of a strip, decoded once; of a damaged one zeros, where those are skipped."""
        if streamed.decoded is None and not streamed.damaged:
            try:
                streamed.decoded = decode_strip(streamed.stored, streamed.strip, CODECS[self.manifest.codec])
            except UserError as error:
                self._found(streamed, error)
        if streamed.decoded is None:
            return np.zeros((streamed.strip.frames, *FRAME_SHAPE), np.uint8)
        return streamed.decoded

    def _found(self, streamed: StreamedStrip, error: UserError) -> None:
        """Mark a damaged strip, and log it the first time; raise where those are not skipped."""
        if streamed.key not in self._damaged:
            skip_or_raise(error, self.skips)
            self._damaged.add(streamed.key)
        streamed.damaged = True

    def _strips_of(self, shard: int) -> Iterator[tuple[EpisodeEntry, int]]:
        """Episode and place of every strip of a shard, in order."""
        return ((entry, number) for entry in self._episodes[shard] for number in range(entry.strips))

    def _strip(self, members: Members | None, where: str, entry: EpisodeEntry, number: int) -> StreamedStrip:
        codec = CODECS[self.manifest.codec]
        if members is None:
            raise UserError(f"{where}: the shard ends before it; copy or pack the data again")
        stem, parts = members
        if stem != strip_name(entry.id, number * STRIP_LENGTH) or set(parts) != set(member_endings(codec)):
            raise UserError(f"{where}: found {stem} with {', '.join(parts)} there; copy or pack the data again")
        stored, key = parts.pop(codec.extension), (entry.id, number)
        try:
            strip = strip_of_members(parts, (0, len(stored)), self.manifest, entry, number, where)
            check_pixels(stored, strip.crc32, where)
            if codec.name != "raw":
                check_picture(stored, strip, codec)
            return StreamedStrip(strip, key, stored, damaged=key in self._damaged)
        except UserError as error:
            streamed = StreamedStrip(blank_strip(where, entry, number, self.manifest.action_dim), key, stored)
            self._found(streamed, error)
            return streamed

    def read_with_webdataset(self, shards: list[int]) -> Iterator[Members]:
        """`ReadMembers` by the WebDataset library: local files and the output of commands.

        Its stages are put together by hand: those of the ready-made pipeline that split shards over nodes and workers
        and shuffle them have no part here, since the stream's order has given this rank its shards in their order.
        """
        wds = load_webdataset()
        for shard in shards:
            url, left = self.locate(self.manifest.shards[shard].file), self.manifest.shards[shard].samples
            if not self.piped:
                check_file(Path(url), self.manifest.shards[shard].bytes)
            streams = _opened(url)
            try:
                for sample in wds.tariterators.group_by_keys(wds.tariterators.tar_file_expander(streams)):
                    if left == 0:
                        raise UserError(f"{url}: holds more strips than the manifest says; copy or pack it again")
                    left -= 1
                    yield sample["__key__"], {name: sample[name] for name in sample if not name.startswith("__")}
            except (OSError, ValueError, tarfile.TarError) as error:
                # WebDataset appends its objects to what was raised.
                reason = str(error.args[0] if len(error.args) > 1 and not isinstance(error, OSError) else error)
                reason = " ".join(reason.partition(" @ ")[0].split())
                raise UserError(f"{url}: cannot be read ({reason}); copy or pack it again") from error
            finally:
                streams.close()

    def read_with_dali(self, shards: list[int]) -> Iterator[Members]:
        """`ReadMembers` by DALI's reader of WebDataset shards: local files with their index."""
        dali = load_dali()
        paths = [self.locate(self.manifest.shards[shard].file) for shard in shards]
        endings = member_endings(CODECS[self.manifest.codec])
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
                    # Members grow from here; DALI would begin at 1 MB for each of `MEMBER_BATCH` times five.
                    tensor_init_bytes=4096,
                )
            )
        for shard in shards:
            # DALI trusts the index.
            reader = ShardReader(Path(self.place), self.manifest, self.manifest.shards[shard])
            for entry, number in self._strips_of(shard):
                reader.places(entry, number)
        left = sum(self.manifest.shards[shard].samples for shard in shards)
        # The reader gives no names; that a strip is the right one shows in its `meta`.
        stems = (strip_name(entry.id, n * STRIP_LENGTH) for shard in shards for entry, n in self._strips_of(shard))
        try:
            pipeline.build()
            while left > 0:
                outputs = [output.as_cpu() for output in pipeline.run()]
                for row in range(min(left, MEMBER_BATCH)):
                    parts = [np.asarray(output.at(row)).tobytes() for output in outputs]
                    yield next(stems), dict(zip(endings, parts, strict=True))
                left -= MEMBER_BATCH
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.place}: DALI cannot read a shard ({reason}); copy or pack it again") from error


def _opened(url: str) -> Generator[dict[str, Any], None, None]:
    """WebDataset's record of an open stream; a command's exit status is checked at its end."""
    stream = load_webdataset().gopen(url)
    try:
        yield {"url": url, "stream": stream}
    except GeneratorExit:
        # Left early: the command may die of its closed pipe, which is no fault.
        with suppress(OSError):
            stream.close()
        raise
    while stream.read(1 << 16):
        pass
    stream.close()
