"""Codecs: how the pixels of a chunk of frames become bytes. All but `jpg` are lossless."""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import PIL
from PIL import Image, JpegImagePlugin, features

JPEG_QUALITY = 95

Shape = tuple[int, int, int, int]
"""Shape of the frames of a chunk: (n, S, S, 3)."""


class Codec:
    """Raw pixels, and the interface of every codec. Unless `lossy`, `decode(encode(x), x.shape)` equals `x`."""

    def __init__(self, name: str, lossy: bool = False, encoder: str = "") -> None:
        self.name, self.lossy = name, lossy
        self.encoder = encoder
        """Library and settings that determine the encoded bytes; empty if none do."""
        self.extension = f"obs.{name}"
        """Extension of the member in the shard."""

    def encode(self, frames: np.ndarray) -> bytes:
        """Encode uint8 [n,S,S,3]."""
        return frames.tobytes()

    def check(self, data: bytes | memoryview, shape: Shape) -> None:
        """Raise `ValueError` if the header shows that these are not frames of this shape. Does not decode."""
        if len(data) != math.prod(shape):
            raise ValueError(f"{len(data)} bytes for {shape[0]} raw frames")

    def decode(self, data: bytes | memoryview, shape: Shape) -> np.ndarray:
        """Decode to uint8 of this shape; `ValueError` if that is not possible."""
        self.check(data, shape)
        return np.frombuffer(data, np.uint8).reshape(shape)


class PictureCodec(Codec):
    """The frames of a chunk below one another, as one compressed picture of n*S rows."""

    def __init__(self, name: str, format: str, lossy: bool, encoder: str, **options: Any) -> None:
        super().__init__(name, lossy, encoder)
        self._format, self._options = format, options

    def encode(self, frames: np.ndarray) -> bytes:
        """Encode uint8 [n,S,S,3]."""
        buffer = io.BytesIO()
        picture = Image.fromarray(frames.reshape(-1, frames.shape[2], 3))
        picture.save(buffer, self._format, **self._options)
        return buffer.getvalue()

    def check(self, data: bytes | memoryview, shape: Shape) -> None:
        """Raise `ValueError` if size, colours or subsampling in the header are wrong. Does not decode."""
        with self._open(data, shape):
            pass

    def decode(self, data: bytes | memoryview, shape: Shape) -> np.ndarray:
        """Decode to uint8 of this shape; `ValueError` if that is not possible."""
        with self._open(data, shape) as picture:
            return np.asarray(picture).reshape(shape)

    @contextmanager
    def _open(self, data: bytes | memoryview, shape: Shape) -> Iterator[Image.Image]:
        """The picture with only its header read and checked, so a forged size cannot make the decoder allocate."""
        frames, height, width, _ = shape
        with open_picture(data, self._format) as picture:
            if picture.mode != "RGB" or picture.size != (width, height * frames):
                raise ValueError(f"a {picture.mode} picture of {picture.size} for {frames} frames")
            if self._format == "JPEG" and JpegImagePlugin.get_sampling(picture) != 0:
                raise ValueError("its colour is subsampled; only 4:4:4 JPEG is sharp enough at this size")
            yield picture


@contextmanager
def open_picture(data: bytes | memoryview, *formats: str) -> Iterator[Image.Image]:
    """A picture file with only its header read; what Pillow raises while it is open becomes `ValueError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=formats)
        with picture:
            yield picture
    # Neither of the last two, for a header that claims an absurd size, is an OSError.
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"not a whole {' or '.join(formats)} picture: {error}") from error


def _encoder(fork_feature: str, fork: str, codec: str, library: str, *choices: str) -> str:
    """Pillow's version, the compression library's, and the choices."""
    version = features.version_feature(fork_feature)
    used = f"{fork} {version}" if version else f"{library} {features.version_codec(codec)}"
    return ", ".join((f"Pillow {PIL.__version__}", used, *choices))


_PNG = _encoder("zlib_ng", "zlib-ng", "zlib", "zlib")
_JPG = _encoder("libjpeg_turbo", "libjpeg-turbo", "jpg", "libjpeg", f"quality {JPEG_QUALITY}", "4:4:4")
CODECS = {
    codec.name: codec
    for codec in (
        Codec("raw"),
        PictureCodec("png", "PNG", False, _PNG, compress_level=6),
        # 4:4:4 keeps colour at full resolution. At 64 pixels a frame, 4:2:0 loses about 8 dB.
        PictureCodec("jpg", "JPEG", True, _JPG, quality=JPEG_QUALITY, subsampling="4:4:4"),
    )
}
