"""How the pixels of one strip of frames become bytes: codecs by name, lossless but for `jpg`."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL
from PIL import Image, JpegImagePlugin, features

from aime_fast.data.episode import FRAME_BYTES, FRAME_SHAPE, IMAGE_SIZE

# Pillow's protests at a header that claims an absurd size; neither is a kind of OSError.
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


JPEG_QUALITY = 95


@dataclass(frozen=True)
class Codec:
    """One way to store a strip, uint8 [n,64,64,3]; unless `lossy`, `decode(encode(x), n)` is `x` bit for bit."""

    name: str
    extension: str
    """Ending of the member in the shard."""
    lossy: bool
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, int], np.ndarray]
    """Bytes and the number of frames to a strip; `ValueError` when they cannot be that strip."""
    check: Callable[[bytes, int], None]
    """`ValueError` when size, colours or sampling in the header are not those of that many frames; reads no pixels."""
    encoder: str
    """Library and choices that decide the bytes (of a lossless codec never the pixels); empty where none do."""


def _encode_raw(strip: np.ndarray) -> bytes:
    return strip.tobytes()


def _check_raw(data: bytes, frames: int) -> None:
    if len(data) != frames * FRAME_BYTES:
        raise ValueError(f"{len(data)} bytes for {frames} raw frames")


def _decode_raw(data: bytes, frames: int) -> np.ndarray:
    _check_raw(data, frames)
    return np.frombuffer(data, np.uint8).reshape(frames, *FRAME_SHAPE)


def _encode_png(strip: np.ndarray) -> bytes:
    return _encode_picture(strip, format="PNG", compress_level=6)


def _encode_jpg(strip: np.ndarray) -> bytes:
    # 4:4:4 keeps colour at full resolution: at 64 pixels a frame, 4:2:0 would cost some 8 dB.
    return _encode_picture(strip, format="JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")


def _encode_picture(strip: np.ndarray, **options: Any) -> bytes:
    """The frames of a strip below one another, as one picture."""
    buffer = io.BytesIO()
    Image.fromarray(strip.reshape(-1, IMAGE_SIZE, 3)).save(buffer, **options)
    return buffer.getvalue()


@contextmanager
def _picture(kind: str, data: bytes, frames: int) -> Iterator[Image.Image]:
    """The picture of a strip with only its header read; what is wrong with it or its pixels becomes `ValueError`."""
    try:
        # The size is checked on the header alone, so a forged one cannot make the decoder allocate.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[kind])
        with image:
            if image.mode != "RGB" or image.size != (IMAGE_SIZE, IMAGE_SIZE * frames):
                raise ValueError(f"a {image.mode} picture of {image.size} for {frames} frames")
            if kind == "JPEG" and JpegImagePlugin.get_sampling(image) != 0:
                raise ValueError("its colour is subsampled; only 4:4:4 JPEG is sharp enough at this size")
            yield image
    except (OSError, SyntaxError, *BOMBS) as error:
        raise ValueError(f"not a whole {kind} picture: {error}") from error


def _check_picture(kind: str, data: bytes, frames: int) -> None:
    with _picture(kind, data, frames):
        pass


def _decode_picture(kind: str, data: bytes, frames: int) -> np.ndarray:
    with _picture(kind, data, frames) as image:
        return np.asarray(image).reshape(frames, *FRAME_SHAPE)


def _png_encoder() -> str:
    fork = features.version_feature("zlib_ng")
    library = f"zlib-ng {fork}" if fork else f"zlib {features.version_codec('zlib')}"
    return f"Pillow {PIL.__version__}, {library}"


def _jpg_encoder() -> str:
    turbo = features.version_feature("libjpeg_turbo")
    library = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return f"Pillow {PIL.__version__}, {library}, quality {JPEG_QUALITY}, 4:4:4"


def _picture_codec(name: str, kind: str, lossy: bool, encode: Callable[[np.ndarray], bytes], encoder: str) -> Codec:
    return Codec(
        name, f"obs.{name}", lossy, encode, partial(_decode_picture, kind), partial(_check_picture, kind), encoder
    )


CODECS = {
    codec.name: codec
    for codec in (
        Codec("raw", "obs.raw", False, _encode_raw, _decode_raw, _check_raw, ""),
        _picture_codec("png", "PNG", False, _encode_png, _png_encoder()),
        _picture_codec("jpg", "JPEG", True, _encode_jpg, _jpg_encoder()),
    )
}
