"""The framing of TFRecord files, read without TensorFlow: length, its checksum, the record, its checksum."""

import functools
import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from aime_fast.errors import UserError

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """The records of a file (plain, gzip or zlib), each with the place it starts at in the uncompressed bytes.

    A compressed file is held in memory. `UserError` for one that is cut, or a record whose masked crc32c is wrong.
    """
    with _opened(path) as stream:
        place = 0
        while header := stream.read(HEADER.size):
            data = _record(stream, header)
            yield place, data
            place += HEADER.size + len(data) + FOOTER.size


def record_at(path: Path, place: int) -> bytes:
    """The record that starts at `place` of the uncompressed bytes."""
    with _opened(path) as stream:
        stream.seek(place)
        return _record(stream, stream.read(HEADER.size))


def starts_like_tfrecord(start: bytes) -> bool:
    """Whether the first bytes of an uncompressed file are a record's length and its checksum."""
    return len(start) >= HEADER.size and _masked_crc32c(start[:8]) == HEADER.unpack_from(start)[1]


def _record(stream: IO[bytes], header: bytes) -> bytes:
    length, _ = HEADER.unpack(header)
    if not starts_like_tfrecord(header):
        raise ValueError("no record starts where one should")
    data = stream.read(length)
    if len(data) != length or _masked_crc32c(data) != FOOTER.unpack(stream.read(FOOTER.size))[0]:
        raise ValueError("a record is cut or damaged (wrong crc32c)")
    return data


def _masked_crc32c(data: bytes) -> int:
    """Checksum of a record as TensorFlow stores it: turned and shifted, so that checksums of checksums stay good."""
    from crc32c import crc32c

    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a file, whichever of the three ways it is stored; what is wrong becomes `UserError`."""
    try:
        with path.open("rb") as file:
            start = file.read(HEADER.size)
            file.seek(0)
            zipped = start[:1] == b"\x78" and int.from_bytes(start[:2], "big") % 31 == 0
            if start[:2] == b"\x1f\x8b" or (zipped and not starts_like_tfrecord(start)):
                yield io.BytesIO(_uncompressed(path, path.stat().st_mtime_ns))
            else:
                yield file
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as TFRecord ({error}); copy it again") from error


@functools.lru_cache(maxsize=1)
def _uncompressed(path: Path, change: int) -> bytes:
    """Content of a gzip or zlib file as it was at `change`; kept, as an episode at a time is asked for."""
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else zlib.decompress(data)
