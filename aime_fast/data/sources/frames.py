"""Pictures and transitions as recordings have them, turned into what an `Episode` holds."""

import functools
import io
import warnings

import numpy as np
from PIL import Image

from aime_fast.data.episode import FRAME_SHAPE, IMAGE_SIZE, Episode
from aime_fast.data.shards.codecs import BOMBS
from aime_fast.errors import UserError

ARRIVING_NOTE = (
    "the recording's action[t] and reward[t] led to frame t: shifted by one, so that actions[t] leads to t+1; "
    "the last frame of each episode, after which nothing was done, is left out"
)
LAST_FRAME_NOTE = "the last frame of each episode, after which no action was taken, is left out"


def as_frames(images: np.ndarray) -> np.ndarray:
    """RGB pictures uint8 [N,H,W,3] or [N,3,H,W] as frames uint8 [N,64,64,3].

    Another size becomes 64x64 by averaging areas. What is no RGB picture is returned as it came, and refused by
    `Episode`.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        return images
    if images.shape[1] == 3 and images.shape[3] != 3:
        images = np.moveaxis(images, 1, 3)
    if images.shape[1:] == FRAME_SHAPE or images.shape[3] != 3:
        return np.ascontiguousarray(images)
    return np.stack([_resized(image) for image in images])


def _resized(image: np.ndarray) -> np.ndarray:
    """A picture uint8 [H,W,3] as [64,64,3]: each pixel the mean over the area it covers.

    Pillow's box filter is not that: at ratios such as 84 to 64 it takes or leaves a pixel by where its centre lies.
    """
    height, width, _ = image.shape
    rows = _shares(height) @ image.reshape(height, -1).astype(np.float32)
    columns = rows.reshape(IMAGE_SIZE, width, 3).swapaxes(0, 1).reshape(width, -1)
    means = (_shares(width) @ columns).reshape(IMAGE_SIZE, IMAGE_SIZE, 3).swapaxes(0, 1)
    return np.rint(means).astype(np.uint8)


@functools.lru_cache
def _shares(size: int) -> np.ndarray:
    """Share that each of `size` pixels in a line has in each of 64: float32 [64,size], rows of sum one."""
    edges = np.linspace(0, size, IMAGE_SIZE + 1)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * IMAGE_SIZE / size).astype(np.float32)


def size_notes(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The sentence for frames whose shape [H,W,3] or [3,H,W] is not this project's; nothing for those that fit."""
    height, width = shape[1:] if shape[0] == 3 and shape[2] != 3 else shape[:2]
    if (height, width) == (IMAGE_SIZE, IMAGE_SIZE):
        return ()
    return (f"frames of {height}x{width} were made {IMAGE_SIZE}x{IMAGE_SIZE} by averaging areas",)


def episode_of(name: str, images: np.ndarray, actions: np.ndarray, rewards: np.ndarray, terminated: bool) -> Episode:
    """An episode whose last action ended it (`terminated`) or was the last one recorded.

    All arrays have one row for each action: row t is the frame seen, the action taken then, and what it earned.
    """
    if len(actions) == 0:
        raise UserError(f"{name}: no action was taken in it; leave the episode out")
    ends = np.zeros(len(actions), bool)
    ends[-1] = True
    return Episode(
        observations=as_frames(images),
        actions=as_float32(actions),
        rewards=as_float32(rewards),
        terminated=ends & terminated,
        truncated=ends & (not terminated),
        name=name,
    )


def as_float32(values: np.ndarray) -> np.ndarray:
    """Floats of another width in single precision; anything else as it came, to be refused by `Episode`."""
    # What is too large for float32 becomes infinity, which `Episode` refuses by name.
    with np.errstate(over="ignore"):
        return values.astype(np.float32) if values.dtype.kind == "f" else values


def decode_picture(data: bytes) -> np.ndarray:
    """A PNG or JPEG file as uint8 [H,W,3]; `ValueError` when it is none, or damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
                return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, *BOMBS) as error:
        raise ValueError(f"not a whole PNG or JPEG picture: {error}") from error


def choose_camera(names: list[str], camera: str | None, where: str) -> str:
    """The one column of pictures, or the one named; `UserError` when it is missing or not the only one."""
    if camera in names:
        return str(camera)
    if len(names) == 1 and camera is None:
        return names[0]
    has = ", ".join(sorted(names))
    if not names:
        raise UserError(f"{where}: there are no pictures in it; record frames as uint8 [N,H,W,3]")
    raise UserError(
        f"{where}: {f'no pictures {camera}' if camera else 'several pictures a step'}; choose --camera {has}"
    )
