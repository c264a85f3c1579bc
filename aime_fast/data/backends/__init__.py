"""The ways windows are read, behind one interface."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from torch import Tensor

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.memory import MemoryBackend
from aime_fast.data.batch import Batch
from aime_fast.data.store import open_store
from aime_fast.errors import UserError

__all__ = ["Backend", "MemoryBackend", "open_backend"]

KINDS = ("auto", "memory")


class Backend(Protocol):
    """What training needs of its data."""

    description: str
    """One line: how the data is read, and why so."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch."""

    @property
    def action_dim(self) -> int:
        """A, the numbers in an action."""

    @property
    def environment(self) -> str | None:
        """Task that was recorded, where the data says so."""

    def mean_frame(self) -> Tensor:
        """Mean of the split's frames (or of many, evenly spread), float32 [3, H, W] in [-1, 1]."""
        ...

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`; decided by the seed and the step alone."""
        ...

    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every window that starts at a multiple of `stride` once, in order; the last batch may be smaller."""
        ...


def open_backend(
    kind: str, path: str | Path | None, sampler_config: LoaderConfig, split: str = "train", seed: int = 0
) -> Backend:
    """Open the episodes of `split` (`train` or `val`) at `path`, a folder of shards, an HDF5 or a `.pt` file.

    `kind` is `memory`, or `auto`, which picks and says why in `description`. A `path` of None is the recorded sample.
    `UserError` for an unknown kind, bad data, or windows longer than every episode.
    """
    if kind not in KINDS:
        raise UserError(f"unknown backend {kind!r}; choose one of {', '.join(KINDS)}")
    store = open_store(path, split)
    chosen = "memory" if kind == "memory" else "memory (auto: raw shards are mapped, the rest fits in host memory)"
    return MemoryBackend(store, sampler_config, seed, f"{chosen}: {store.description}")
