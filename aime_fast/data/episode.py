"""One recorded episode, and its checks."""

from dataclasses import dataclass

import numpy as np

from aime_fast.errors import UserError

DEFAULT_SIZE = 64
"""Side of a frame in pixels where nothing else is asked for."""
SIZE_STEP, LARGEST_SIZE = 16, 512

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Actions float32 [N,A], rewards float32 [N], dones and terminated bool [N] of N frames."""


def check_image_size(size: int) -> int:
    """Return `size`; `UserError` unless it is a multiple of 16 from 16 to 512."""
    if size % SIZE_STEP or not SIZE_STEP <= size <= LARGEST_SIZE:
        raise UserError(f"image size is {size}; it must be a multiple of {SIZE_STEP} up to {LARGEST_SIZE}")
    return size


@dataclass(frozen=True, eq=False)
class Episode:
    """N frames of one trajectory. `actions[t]` is taken after observing `observations[t]` and earns `rewards[t]`.

    Raises `UserError` that starts with `name` if a dtype, shape or length is wrong, if the episode is empty, if an
    action or reward is not finite, or if a frame before the last one is marked as the end.
    """

    observations: np.ndarray
    """uint8 [N,S,S,3], RGB; the image size S is a multiple of 16."""
    actions: np.ndarray
    """float32 [N,A], finite; A is 0 where nothing acts."""
    rewards: np.ndarray
    """float32 [N], finite."""
    terminated: np.ndarray
    """bool [N], true on the last frame if the task ended there."""
    truncated: np.ndarray
    """bool [N], true on the last frame if the recording stopped there."""
    name: str = "episode"
    """File and episode number, for error messages."""

    def __post_init__(self) -> None:
        n, shape = len(self.observations), self.observations.shape
        if n == 0:
            raise UserError(f"{self.name}: the episode has no frames; leave it out")
        square = len(shape) == 4 and shape[1] == shape[2] and shape[1] % SIZE_STEP == 0
        size = shape[1] if square and shape[1] else DEFAULT_SIZE
        expected = {
            "observations": (np.uint8, (n, size, size, 3)),
            "actions": (np.float32, (n, None)),
            "rewards": (np.float32, (n,)),
            "terminated": (np.bool_, (n,)),
            "truncated": (np.bool_, (n,)),
        }
        for key, (dtype, wanted) in expected.items():
            _check_array(self.name, key, getattr(self, key), np.dtype(dtype), wanted)
        for key in ("actions", "rewards"):
            bad = ~np.isfinite(getattr(self, key)).reshape(n, -1).all(axis=1)
            if bad.any():
                raise UserError(f"{self.name}: {key} hold NaN or infinity at frame {bad.argmax()}; fix the recording")
        early = self.dones[:-1]
        if early.any():
            raise UserError(
                f"{self.name}: frame {early.argmax()} of {n} is marked as the end, but the episode goes on; "
                "split it there"
            )

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def action_dim(self) -> int:
        """A, the size of an action."""
        return self.actions.shape[1]

    @property
    def image_size(self) -> int:
        """S, the side of a frame in pixels."""
        return self.observations.shape[1]

    @property
    def dones(self) -> np.ndarray:
        """bool [N], terminated or truncated."""
        return self.terminated | self.truncated

    @property
    def columns(self) -> Columns:
        """Everything but the frames."""
        return self.actions, self.rewards, self.dones, self.terminated


def _check_array(name: str, key: str, array: np.ndarray, dtype: np.dtype, shape: tuple[int | None, ...]) -> None:
    """Raise `UserError` unless `array` has this dtype and shape (None: any size)."""
    if array.dtype != dtype:
        discrete = key == "actions" and array.dtype.kind in "iub"
        remedy = "save discrete ones one-hot, [N, number of actions]" if discrete else "convert them before packing"
        raise UserError(f"{name}: {key} are {array.dtype}, expected {dtype}; {remedy}")
    if array.ndim == len(shape) and len(array) != shape[0]:
        raise UserError(f"{name}: {len(array)} {key} for {shape[0]} frames; every field needs one row a frame")
    fits = array.ndim == len(shape) and all(want in (have, None) for have, want in zip(array.shape, shape, strict=True))
    if not fits:
        wanted = ", ".join("A" if size is None else str(size) for size in shape)
        remedy = "; reshape one number a frame to [N,1]" if key == "actions" and array.ndim == 1 else ""
        raise UserError(f"{name}: {key} have shape {list(array.shape)}, expected [{wanted}]{remedy}")
