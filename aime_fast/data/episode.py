"""One recorded episode, checked at the door."""

from dataclasses import dataclass

import numpy as np

from aime_fast.errors import UserError

IMAGE_SIZE = 64
FRAME_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
FRAME_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3


@dataclass(frozen=True, eq=False)
class Episode:
    """N frames of one trajectory; `actions[t]` is taken after seeing `observations[t]` and earns `rewards[t]`.

    Raises `UserError`, naming `name`, when a field has another dtype or shape, lengths differ, the episode is empty,
    an action or reward is not finite, or a frame before the last one claims to end the episode.
    """

    observations: np.ndarray
    """uint8 [N,64,64,3], RGB."""
    actions: np.ndarray
    """float32 [N,A], finite, A >= 1."""
    rewards: np.ndarray
    """float32 [N], finite."""
    terminated: np.ndarray
    """bool [N], true on the last frame when the task itself ended."""
    truncated: np.ndarray
    """bool [N], true on the last frame when the recording was cut."""
    name: str = "episode"
    """Where it came from, for messages: file and episode number."""

    def __post_init__(self) -> None:
        n = len(self.observations)
        if n == 0:
            raise UserError(f"{self.name}: the episode has no frames; leave it out")
        expected = {
            "observations": (np.uint8, (n, *FRAME_SHAPE)),
            "actions": (np.float32, (n, None)),
            "rewards": (np.float32, (n,)),
            "terminated": (np.bool_, (n,)),
            "truncated": (np.bool_, (n,)),
        }
        for key, (dtype, shape) in expected.items():
            _check_array(self.name, key, getattr(self, key), np.dtype(dtype), shape)
        for key in ("actions", "rewards"):
            bad = ~np.isfinite(getattr(self, key)).reshape(n, -1).all(axis=1)
            if bad.any():
                raise UserError(f"{self.name}: {key} hold NaN or infinity at frame {bad.argmax()}; mend the recording")
        early = (self.terminated | self.truncated)[:-1]
        if early.any():
            raise UserError(
                f"{self.name}: frame {early.argmax()} of {n} is marked as the end, but the episode goes on; "
                "split it there"
            )

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""
        return self.actions.shape[1]


def _check_array(name: str, key: str, array: np.ndarray, dtype: np.dtype, shape: tuple[int | None, ...]) -> None:
    """Raise `UserError` unless `array` has this dtype and shape (None: any positive size)."""
    if array.dtype != dtype:
        raise UserError(f"{name}: {key} are {array.dtype}, expected {dtype}; convert them before packing")
    if array.ndim == len(shape) and len(array) != shape[0]:
        raise UserError(f"{name}: {len(array)} {key} for {shape[0]} frames; every field needs one row a frame")
    fits = array.ndim == len(shape) and all(
        have == want if want is not None else have > 0 for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("A" if size is None else str(size) for size in shape)
        raise UserError(f"{name}: {key} have shape {list(array.shape)}, expected [{wanted}]")
