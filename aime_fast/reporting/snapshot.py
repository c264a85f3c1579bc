"""What a validation shows of a run, as plain arrays in one small file: enough for every figure, without the model."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from aime_fast.errors import UserError

NAME = "snapshot.npz"
"""The file in a run's folder; each validation replaces it."""
COLUMNS = 8
"""Most frames in a row of a picture; they are evenly spaced over the window."""
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The first held-out window of T frames, and sums over the first batch of windows.

    S slots, K components, G the grid, D coordinates of z, N frames of the batch.
    """

    step: Array
    """int64, 0-d."""
    frames: Array
    """uint8 [T, H, W, 3], like the other pictures."""
    reconstructions: Array
    token_reconstructions: Array
    imagined: Array
    """[T - context, H, W, 3]: predicted from the first frames and the actions."""
    maps: Array
    """float16 [T, S, G, G]: where each slot looks; sums to 1 over the grid."""
    masks: Array
    """float16 [T, S, G, G]: the slots' shares of each cell; sums to 1 over the slots."""
    centres: Array
    """float32 [T, S, 2]: (x, y) of the slots' maps, from -1 to 1."""
    weights: Array
    """float32 [T, K]: the prior's weights of the components."""
    responsibilities: Array
    """float32 [T, K]: of the posterior's samples."""
    usage: Array
    """float32 [K]: mean responsibilities over the batch."""
    component_frames: Array
    """uint8 [K, H, W, 3]: the decoded mean of the z that a component explains."""
    measure: Array
    """float32 [2, K]: expected stick weights, of the posterior and of the prior; [2, 0] for a prior without sticks."""
    concentration: Array
    """float32 [2]: E[alpha] of the posterior and of its prior, nan without sticks."""
    latents: Array
    """float16 [N, D]: posterior means."""
    component: Array
    """int16 [N]: the component with the largest responsibility."""
    code_counts: Array
    """int64 [codes]: how often each code occurs in the batch."""

    def save(self, folder: str | Path) -> None:
        """Write the file into a run's folder, atomically."""
        target = Path(folder) / NAME
        draft = target.with_suffix(".unfinished.npz")
        np.savez_compressed(draft, **{f.name: getattr(self, f.name) for f in fields(self)})
        os.replace(draft, target)


def read_snapshot(folder: str | Path) -> Snapshot | None:
    """The snapshot of a run's folder, or None where no validation has written one; `UserError` if it is damaged."""
    path = Path(folder) / NAME
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            return Snapshot(**{f.name: file[f.name] for f in fields(Snapshot)})
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(
            f"{path} is damaged or of another version ({error}); the next validation replaces it"
        ) from error


def spread(frames: int) -> list[int]:
    """At most `COLUMNS` frame numbers, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, frames - 1, min(COLUMNS, frames)).round().astype(int)).tolist()
