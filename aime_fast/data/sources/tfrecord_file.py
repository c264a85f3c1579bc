"""TFRecord files, read without TensorFlow. A record is its length, a checksum, the data, and a checksum."""

import functools
import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from aime_fast.data.sources.source import readable

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """The records of a file, each with its first byte in the uncompressed data; `UserError` for damage."""
    with _opened(path) as stream:
        place = 0
        while header := stream.read(HEADER.size):
            data = _record(stream, header)
            yield place, data
            place += HEADER.size + len(data) + FOOTER.size


def record_at(path: Path, place: int) -> bytes:
    """The record that starts at byte `place` of the uncompressed data."""
    with _opened(path) as stream:
        stream.seek(place)
        return _record(stream, stream.read(HEADER.size))


def starts_like_tfrecord(start: bytes) -> bool:
    """Whether the first bytes of uncompressed data are a record's length and its checksum."""
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
    """The checksum as TensorFlow stores it: rotated, plus a constant, so that checksums of checksums stay useful."""
    from crc32c import crc32c

    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The uncompressed data of a file (plain, gzip or zlib); damage becomes `UserError`."""
    with readable(path, "TFRecord"), path.open("rb") as file:
        start = file.read(HEADER.size)
        file.seek(0)
        zipped = start[:1] == b"\x78" and int.from_bytes(start[:2], "big") % 31 == 0
        if start[:2] == b"\x1f\x8b" or (zipped and not starts_like_tfrecord(start)):
            yield io.BytesIO(_uncompressed(path, path.stat().st_mtime_ns))
        else:
            yield file


@functools.lru_cache(maxsize=1)
def _uncompressed(path: Path, change: int) -> bytes:
    """Content of a gzip or zlib file as of the time `change`. Cached, because episodes are read one by one."""
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else zlib.decompress(data)
