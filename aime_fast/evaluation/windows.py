"""The windows that a model is judged on: the same ones for every model of a data set."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from aime_fast.data.batch import Batch
from aime_fast.data.shards.manifest import CHUNK_LENGTH
from aime_fast.data.store import Episodes
from aime_fast.data.windows import valid_starts
from aime_fast.errors import UserError
from aime_fast.evaluation.metrics import moving_pixels

PROTOCOL_STRIDE = 4
"""Windows of the reconstruction start at the multiples of this in every held-out episode."""
OPEN_LOOP_STRIDE = 10
"""Windows of the open loop start at the multiples of this in every held-out episode."""
ROWS = 8
"""Windows that pass through the model at once."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of T frames, each inside one episode of `store`, whose frames are held."""

    store: Episodes
    length: int
    """T."""
    places: np.ndarray
    """int64 [W, 2] of (episode, first frame), sorted."""
    _means: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def episodes(self) -> np.ndarray:
        """int64 [W], each window's episode."""
        return self.places[:, 0]

    @property
    def partners(self) -> np.ndarray:
        """int64 [W], the window half of all windows away, which has the other actions. It is itself if alone."""
        return np.roll(np.arange(len(self)), -(len(self) // 2))

    def batch(self, rows: np.ndarray) -> Batch:
        """The windows with these numbers, int64 [b]."""
        places = self.places[rows]
        self.store.sound(places, self.length)  # raises for a damaged chunk
        return self.store.gather(places, self.length)

    def parts(self, size: int = ROWS) -> Iterator[tuple[np.ndarray, Batch]]:
        """All windows in order, `size` at a time, each part with the windows' numbers."""
        for start in range(0, len(self), size):
            rows = np.arange(start, min(start + size, len(self)))
            yield rows, self.batch(rows)

    def moving(self, rows: np.ndarray, batch: Batch) -> Tensor:
        """Which pixels of `batch`, the windows `rows`, move in their episode: bool [b, T, H, W]."""
        means = torch.stack([self._mean_frame(int(episode)) for episode in self.episodes[rows]])
        frames = batch.observations.movedim(-1, 2).float()
        return moving_pixels(frames, means[:, None].to(frames.device))

    def _mean_frame(self, episode: int) -> Tensor:
        """Mean frame of an episode, in levels: float32 [3, H, W]."""
        if episode not in self._means:
            length = self.store.lengths[episode]
            chunks = (self.store.chunk_frames(episode, start) for start in range(0, length, CHUNK_LENGTH))
            total = sum(chunk.sum(0, dtype=np.int64) for chunk in chunks)
            self._means[episode] = torch.from_numpy(total / length).movedim(-1, 0).float()
        return self._means[episode]


def make_windows(store: Episodes, length: int, stride: int, limit: int | None = None) -> Windows:
    """Windows of `length` frames that start at multiples of `stride`; at most `limit` of them, evenly spaced.

    `UserError` if no episode is so long.
    """
    places = valid_starts(store.lengths, length, stride)
    if not len(places):
        raise UserError(
            f"a window has {length} frames, but the longest of {len(store.lengths)} episodes has {max(store.lengths)}; "
            "lower --context or --horizon, or record longer ones"
        )
    if limit is not None and len(places) > limit:
        places = places[np.linspace(0, len(places) - 1, limit).round().astype(np.int64)]
    return Windows(store, length, places)
