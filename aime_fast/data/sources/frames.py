"""Pictures and transitions of recordings, converted to the fields of an `Episode`."""

import functools
from typing import Any

import numpy as np

from aime_fast.data.episode import Episode
from aime_fast.data.shards.codecs import open_picture
from aime_fast.data.sources.source import Pictures
from aime_fast.errors import UserError

LOOKED_AT = 16
"""Rows of a recording's pictures whose values are looked at before it is read."""

NO_REWARDS_NOTE = "no rewards were recorded: they are zero"
NO_ENDS_NOTE = "nothing marks where episodes end: the file is one episode"
ARRIVING_NOTE = (
    "the recording's action[t] and reward[t] led to frame t: shifted by one, so that actions[t] leads to t+1; "
    "the last frame of each episode, after which nothing was done, is left out"
)
LATE_REWARD_NOTE = "the recording's reward[t] was earned on the way to frame t: shifted by one"
LED_NOTE = "the recording's action[t] led to frame t: shifted by one, so that actions[t] leads to t+1"
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
    """A note if pictures of shape [H,W,C] or [C,H,W] are resized; otherwise nothing."""
    height, width = np.delete(shape, channel_axis(shape)).tolist()
    if (height, width) == (size, size):
        return ()
    stretched = "" if height == width else "; they are not square, so shapes are stretched"
    return (f"frames of {height}x{width} were resized to {size}x{size} by averaging areas{stretched}",)


def picture_notes(images: Any, pictures: Pictures, where: str) -> tuple[str, ...]:
    """What becomes of pictures [N,H,W,C] or [N,C,H,W], or stacks of them [N,K,H,W,C], one sentence each.

    `images` need only be sliced. `UserError` that starts with `where` for types, ranges and channels that are no uint8
    RGB, and for stacks unless the last picture of each is wanted.
    """
    if images.ndim not in (4, 5):
        raise UserError(f"{where}: its pictures have shape {list(images.shape)}; record RGB as uint8 [N,H,W,3]")
    first = images[:LOOKED_AT]
    if images.dtype != np.uint8:
        raise UserError(f"{where}: its pictures are {images.dtype}{_range_advice(first)}")
    notes: list[str] = []
    shape = images.shape[-3:]
    channels = shape[channel_axis(shape)]
    stacked = images.shape[1] if images.ndim == 5 else channels // 3 if channels % 3 == 0 else 1
    if stacked > 1:
        kind = f"a stack of {stacked} frames" + (f" in {channels} channels" if images.ndim == 4 else "")
        if not pictures.last_of_stack:
            raise UserError(f"{where}: each row is {kind}; take the last with `aime-fast pack --last-of-stack`")
        notes.append(f"each row is {kind}: the last one was taken")
        channels = 3 if images.ndim == 4 else channels
    if channels != 3:
        raise UserError(f"{where}: its pictures have {channels} channels, expected 3; record RGB as uint8 [N,H,W,3]")
    if first.max(initial=0) == 1:
        notes.append("every pixel looked at is 0 or 1: if floats were cut to integers, multiply by 255 before saving")
    return (*notes, *size_notes(shape, pictures.size))


def last_of_stacks(images: np.ndarray, pictures: Pictures) -> np.ndarray:
    """Pictures [N,H,W,3] or [N,3,H,W]: the last one of each row where rows are stacks and that is wanted."""
    if not pictures.last_of_stack:
        return images
    if images.ndim == 5:
        images = images[:, -1]
    return images[..., -3:] if channel_axis(images.shape[1:]) == 2 else images[:, -3:]


def channel_axis(shape: tuple[int, ...]) -> int:
    """Which axis of a picture's shape of three has its channels: that of 3, else the shorter of the first and last."""
    if 3 in (shape[0], shape[2]):
        return 2 if shape[2] == 3 else 0
    return 2 if shape[2] <= shape[0] else 0


def _range_advice(values: np.ndarray) -> str:
    """The range of values that are not uint8, and how they become so."""
    if values.dtype.kind not in "fiub" or values.size == 0 or not np.isfinite(values).all():
        return ", expected uint8 from 0 to 255; convert them"
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        advice = "multiply by 255 and round"
    elif low >= -1 and high <= 1:
        advice = "add 1, multiply by 127.5 and round"
    elif low >= 0 and high <= 255:
        advice = "round them"
    else:
        advice = "map them to 0 to 255"
    return f" from {low:.4g} to {high:.4g}, expected uint8; {advice}, and save them as uint8"


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
    raise UserError(f"{where}: {problem}; choose with `aime-fast pack --camera`: {', '.join(sorted(names))}")
