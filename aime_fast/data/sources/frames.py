"""Pictures and transitions of recordings, converted to the fields of an `Episode`."""

import functools

import numpy as np

from aime_fast.data.episode import Episode
from aime_fast.data.shards.codecs import open_picture
from aime_fast.errors import UserError

NO_REWARDS_NOTE = "no rewards were recorded: they are zero"
ARRIVING_NOTE = (
    "the recording's action[t] and reward[t] led to frame t: shifted by one, so that actions[t] leads to t+1; "
    "the last frame of each episode, after which nothing was done, is left out"
)
LAST_FRAME_NOTE = "the last frame of each episode, after which no action was taken, is left out"


def as_frames(images: np.ndarray, size: int) -> np.ndarray:
    """RGB pictures uint8 [N,H,W,3] or [N,3,H,W] as frames uint8 [N,S,S,3] with S = `size`, resized by area averaging.

    Anything else is returned unchanged; `Episode` refuses it.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        return images
    if images.shape[1] == 3 and images.shape[3] != 3:
        images = np.moveaxis(images, 1, 3)
    if images.shape[1:] == (size, size, 3) or images.shape[3] != 3:
        return np.ascontiguousarray(images)
    return np.stack([_resized(image, size) for image in images])


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """A picture uint8 [H,W,3] as [S,S,3]. Each pixel is the mean over the area that it covers.

    Pillow's box filter differs: at ratios such as 84 to 64 it includes a pixel or not, by the place of its centre.
    """
    height, width, _ = image.shape
    rows = _shares(height, size) @ image.reshape(height, -1).astype(np.float32)
    columns = rows.reshape(size, width, 3).swapaxes(0, 1).reshape(width, -1)
    means = (_shares(width, size) @ columns).reshape(size, size, 3).swapaxes(0, 1)
    return np.rint(means).astype(np.uint8)


@functools.lru_cache
def _shares(old: int, new: int) -> np.ndarray:
    """Weight of each of `old` pixels of a line in each of `new` pixels: float32 [new,old], rows sum to one."""
    edges = np.linspace(0, old, new + 1)
    pixels = np.arange(old)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * new / old).astype(np.float32)


def size_notes(shape: tuple[int, ...], size: int) -> tuple[str, ...]:
    """A note if pictures of shape [H,W,3] or [3,H,W] are resized; otherwise nothing."""
    height, width = shape[1:] if shape[0] == 3 and shape[2] != 3 else shape[:2]
    if (height, width) == (size, size):
        return ()
    return (f"frames of {height}x{width} were resized to {size}x{size} by averaging areas",)


def episode_of(
    name: str, images: np.ndarray, size: int, actions: np.ndarray, rewards: np.ndarray, terminated: bool
) -> Episode:
    """An episode of one row for each action: the picture observed, the action taken then, and its reward."""
    if len(actions) == 0:
        raise UserError(f"{name}: no action was taken in it; leave the episode out")
    ends = np.zeros(len(actions), bool)
    ends[-1] = True
    return Episode(
        observations=as_frames(images, size),
        actions=as_float32(actions),
        rewards=as_float32(rewards),
        terminated=ends & terminated,
        truncated=ends & (not terminated),
        name=name,
    )


def as_float32(values: np.ndarray) -> np.ndarray:
    """Floats in single precision; anything else unchanged, for `Episode` to refuse."""
    # A number too large for float32 becomes infinity, which `Episode` refuses.
    with np.errstate(over="ignore"):
        return values.astype(np.float32) if values.dtype.kind == "f" else values


def decode_picture(data: bytes) -> np.ndarray:
    """A PNG or JPEG file as uint8 [H,W,3]; `ValueError` if it is damaged or another kind of file."""
    with open_picture(data, "PNG", "JPEG") as picture:
        return np.asarray(picture.convert("RGB"))


def choose_camera(names: list[str], camera: str | None, where: str) -> str:
    """The only set of pictures, or the named one; `UserError` if it is missing or the choice is open."""
    if camera in names:
        return str(camera)
    if len(names) == 1 and camera is None:
        return names[0]
    if not names:
        raise UserError(f"{where}: there are no pictures in it; record frames as uint8 [N,H,W,3]")
    problem = f"no pictures {camera}" if camera else "several pictures a step"
    raise UserError(f"{where}: {problem}; choose --camera {', '.join(sorted(names))}")
