"""How the pixels of one strip of frames become bytes: lossless codecs, by name."""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import Image, features

from aime_fast.data.episode import FRAME_BYTES, FRAME_SHAPE, IMAGE_SIZE

# Pillow's protests at a header that claims an absurd size; neither is a kind of OSError.
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Codec:
    """One way to store a strip, uint8 [n,64,64,3]; `decode(encode(x), n)` is `x` bit for bit."""

    name: str
    extension: str
    """Ending of the member in the shard."""
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, int], np.ndarray]
    """Bytes and the number of frames to a strip; `ValueError` when they cannot be that strip."""
    encoder: str
    """Library whose version decides the bytes (never the pixels); empty where none does."""


def _encode_raw(strip: np.ndarray) -> bytes:
    return strip.tobytes()


def _decode_raw(data: bytes, frames: int) -> np.ndarray:
    if len(data) != frames * FRAME_BYTES:
        raise ValueError(f"{len(data)} bytes for {frames} raw frames")
    return np.frombuffer(data, np.uint8).reshape(frames, *FRAME_SHAPE)


def _encode_png(strip: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(strip.reshape(-1, IMAGE_SIZE, 3)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _decode_png(data: bytes, frames: int) -> np.ndarray:
    try:
        # The size is checked on the header alone, so a forged one cannot make the decoder allocate.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=["PNG"])
        with image:
            if image.mode != "RGB" or image.size != (IMAGE_SIZE, IMAGE_SIZE * frames):
                raise ValueError(f"a {image.mode} picture of {image.size} for {frames} frames")
            return np.asarray(image).reshape(frames, *FRAME_SHAPE)
    except (OSError, SyntaxError, *BOMBS) as error:
        raise ValueError(f"not a whole PNG picture: {error}") from error


def _png_encoder() -> str:
    fork = features.version_feature("zlib_ng")
    library = f"zlib-ng {fork}" if fork else f"zlib {features.version_codec('zlib')}"
    return f"Pillow {PIL.__version__}, {library}"


CODECS = {
    codec.name: codec
    for codec in (
        Codec("raw", "obs.raw", _encode_raw, _decode_raw, ""),
        Codec("png", "obs.png", _encode_png, _decode_png, _png_encoder()),
    )
}
