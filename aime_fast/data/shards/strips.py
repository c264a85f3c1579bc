"""Where the stored pixels of a split's strips lie, checked when first touched, and which of them are damaged."""

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aime_fast.data.episode import FRAME_SHAPE
from aime_fast.data.shards.codecs import Codec
from aime_fast.data.shards.manifest import STRIP_LENGTH, EpisodeEntry
from aime_fast.data.shards.reader import ShardReader, Strip, check_pixels, damaged_pixels, strip_place
from aime_fast.errors import UserError

_log = logging.getLogger(__name__)


def skip_or_raise(error: UserError, skips: bool) -> None:
    """Raise `error` again, or log it as one line where damaged strips are skipped."""
    if not skips:
        raise error
    _log.warning("skipped: %s", error)


@dataclass(frozen=True, eq=False)
class StripTable:
    """The strips of a split's episodes end to end, their pixels still on disk."""

    codec: Codec
    readers: list[ShardReader]
    entries: list[EpisodeEntry]
    """The split's episodes."""
    first: np.ndarray
    """int64 [episodes], first strip of each."""
    offset: np.ndarray
    """int64 [strips], in bytes."""
    size: np.ndarray
    """int64 [strips], in bytes."""
    crc32: np.ndarray
    """int64 [strips]."""
    checked: np.ndarray
    """bool [strips], pixels compared with their checksum."""
    damaged: np.ndarray
    """bool [strips], found damaged."""
    skips: bool
    """Whether a damaged strip is remembered and logged, instead of an error."""

    @cached_property
    def _shard(self) -> np.ndarray:
        """int64 [strips], the shard that holds each."""
        return np.repeat([entry.shard for entry in self.entries], [entry.strips for entry in self.entries])

    def locate(self, strip: int) -> tuple[int, int]:
        """Episode of a strip, counted within the split, and its place in it."""
        episode = int(np.searchsorted(self.first, strip, side="right")) - 1
        return episode, strip - int(self.first[episode])

    def frames(self, strip: int) -> int:
        """Frames of a strip."""
        episode, number = self.locate(strip)
        return min(STRIP_LENGTH, self.entries[episode].length - number * STRIP_LENGTH)

    def where(self, strip: int) -> str:
        """Shard, episode and frames of a strip, for messages."""
        episode, number = self.locate(strip)
        entry = self.entries[episode]
        return strip_place(self.readers[entry.shard].path, entry, number)

    def stored(self, strip: int) -> np.ndarray:
        """The stored pixels, uint8 [size], mapped and not copied."""
        reader = self.readers[self._shard[strip]]
        reader.check_length()
        return reader.data[self.offset[strip] : self.offset[strip] + self.size[strip]]

    def sound(self, strips: np.ndarray) -> np.ndarray:
        """Which of the strips (int64, any shape) are sound: bool, same shape.

        A strip asked for the first time has its checksum and the picture's header compared. `UserError` for a damaged
        one unless `skips`, and for a shard that has been cut since it was opened.
        """
        if self.readers:
            for shard in set(self._shard[strips].ravel().tolist()):
                self.readers[shard].check_length()
        if not self.checked[strips].all():
            for strip in np.unique(strips[~self.checked[strips]]).tolist():
                self._check(strip)
        return ~self.damaged[strips]

    def _check(self, strip: int) -> None:
        stored = self.stored(strip)
        try:
            check_pixels(stored.data, self.crc32[strip], self.where(strip))
            if self.codec.name != "raw":
                self.codec.check(stored.tobytes(), self.frames(strip))
        except UserError as error:
            self.found(strip, error)
        except ValueError as error:
            self.found(strip, damaged_pixels(self.where(strip), error))
        self.checked[strip] = True

    def decode(self, strip: int) -> np.ndarray:
        """Frames uint8 [frames,64,64,3] of a strip; zeros for a damaged one where those are skipped."""
        if self.sound(np.array([strip]))[0]:
            try:
                return self.codec.decode(self.stored(strip).tobytes(), self.frames(strip))
            except ValueError as error:
                self.found(strip, damaged_pixels(self.where(strip), error))
        return np.zeros((self.frames(strip), *FRAME_SHAPE), np.uint8)

    def found(self, strip: int, error: UserError) -> None:
        """Take note of a damaged strip; raises `error` unless `skips`."""
        skip_or_raise(error, self.skips)
        self.damaged[strip] = True


def read_strips(
    readers: list[ShardReader], entries: list[EpisodeEntry], codec: Codec, skips: bool
) -> tuple[StripTable, list[list[Strip]]]:
    """The table of these episodes' strips, and the strips with everything but their pixels, an episode a list.

    A strip whose other members are damaged counts as damaged, with columns of zeros, where those are skipped.
    """
    damaged: list[bool] = []
    episodes = []
    for entry in entries:
        reader, strips = readers[entry.shard], []
        for number in range(entry.strips):
            try:
                strips.append(reader.strip(entry, number))
                damaged.append(False)
            except UserError as error:
                skip_or_raise(error, skips)
                strips.append(blank_strip(strip_place(reader.path, entry, number), entry, number, reader.action_dim))
                damaged.append(True)
        episodes.append(strips)
    every = [strip for strips in episodes for strip in strips]
    bad = np.array(damaged)
    table = StripTable(
        codec,
        readers,
        entries,
        first=np.cumsum([0, *(len(strips) for strips in episodes[:-1])]),
        offset=np.array([strip.offset for strip in every], np.int64),
        size=np.array([strip.size for strip in every], np.int64),
        crc32=np.array([strip.crc32 for strip in every], np.int64),
        checked=bad.copy(),
        damaged=bad,
        skips=skips,
    )
    return table, episodes


def blank_strip(where: str, entry: EpisodeEntry, number: int, action_dim: int) -> Strip:
    """Stands in for a damaged strip: no pixels, and columns of zeros."""
    frames = min(STRIP_LENGTH, entry.length - number * STRIP_LENGTH)
    flags = np.zeros(frames, bool)
    return Strip(
        where, frames, 0, 0, 0, np.zeros((frames, action_dim), np.float32), np.zeros(frames, np.float32), flags, flags
    )
