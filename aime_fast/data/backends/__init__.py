"""The ways windows are read, behind one interface."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.dali import DaliBackend
from aime_fast.data.backends.dali_stream import DaliStreamBackend
from aime_fast.data.backends.memory import MemoryBackend
from aime_fast.data.backends.resident import ResidentBackend, free_bytes
from aime_fast.data.backends.webdataset import WebDatasetBackend
from aime_fast.data.batch import Batch
from aime_fast.data.store import SAMPLE, Episodes, FrameStore, open_episodes, within_reach
from aime_fast.data.streaming.reader import PIPE, Shards
from aime_fast.errors import UserError

__all__ = ["Backend", "open_backend"]

KINDS = ("auto", "resident", "memory", "dali", "dali-stream", "webdataset")
STREAMS = ("dali-stream", "webdataset")
BAD_SAMPLE = ("raise", "skip")
SHARE = 0.5
"""Part of the free memory, of the device or the host, that `auto` lets the frames take."""


class Backend(Protocol):
    """What training needs of its data."""

    description: str
    """One line: how the data is read, and why so."""

    skipped: int
    """Windows replaced by the next one because a strip of theirs is damaged."""

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
        """Mean of many of the split's frames: float32 [3, H, W] in [-1, 1]."""
        ...

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`.

        An exact back-end's global batch is decided by (seed, step), a stream's by the number of processes too.
        """
        ...

    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every window that starts at a multiple of `stride` once, in order; the last batch may be smaller."""
        ...


def open_backend(
    kind: str,
    path: str | Path | None,
    sampler_config: LoaderConfig,
    split: str = "train",
    seed: int = 0,
    on_bad_sample: str = "raise",
) -> Backend:
    """Open the episodes of `split` (`train` or `val`) at `path`: a folder of shards, an HDF5 or `.pt` file, or `pipe:`.

    `kind` is one of `KINDS`; `auto` picks and says why in `description`. Only training streams: of another split, a
    streaming kind opens `memory`. A `path` of None is the recorded sample. `on_bad_sample="skip"` logs a damaged strip
    and puts the next window in the place of one that touches it; `raise` is a `UserError`. `UserError` also for an
    unknown kind, bad data, or windows longer than every episode.
    """
    for name, value, known in (("backend", kind, KINDS), ("on_bad_sample", on_bad_sample, BAD_SAMPLE)):
        if value not in known:
            raise UserError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
    skips, device = on_bad_sample == "skip", _device()
    why = ""
    if kind == "auto" and str(path).startswith(PIPE):
        kind, why = "webdataset", " (auto: a pipe can only be streamed)"
    if kind in STREAMS and split == "train":
        return _open_stream(kind, kind + why, path, sampler_config, seed, skips, device)
    episodes = open_episodes(path, split, skips)
    if kind in STREAMS:
        kind, why = "memory", f" ({kind} streams only for training)"
    elif kind == "auto":
        kind, reason = _choose(episodes, device)
        why = f" (auto: {reason})"
    if kind == "memory":
        episodes = within_reach(episodes)
        assert isinstance(episodes, FrameStore)
        return MemoryBackend(episodes, sampler_config, seed, f"memory{why}: {episodes.description}")
    description = f"{kind} on {device.type}{why}: {episodes.description}"
    if kind == "resident":
        return ResidentBackend(episodes, sampler_config, seed, description, device)
    return DaliBackend(episodes, sampler_config, seed, description, device, _threads())


def _open_stream(
    kind: str,
    chosen: str,
    path: str | Path | None,
    config: LoaderConfig,
    seed: int,
    skips: bool,
    device: torch.device,
) -> Backend:
    place = SAMPLE if path is None else path
    if os.path.isfile(place):
        raise UserError(f"{place}: backend {kind} reads shards; `aime-fast pack` the recording first")
    shards = Shards(place, skips)
    count = len(shards.manifest.shards)
    told = f"{count} {shards.manifest.codec} shard{'s' if count != 1 else ''} read in order"
    description = f"{chosen}: {place}, {told}"
    if kind == "webdataset":
        return WebDatasetBackend(shards, config, "train", seed, description)
    return DaliStreamBackend(shards, config, "train", seed, description, device, _threads())


def _choose(episodes: Episodes, device: torch.device) -> tuple[str, str]:
    """The back-end for these episodes on this device, and why."""
    size, host = episodes.frame_bytes, torch.device("cpu")
    if device.type == "cuda" and size <= SHARE * free_bytes(device):
        return "resident", f"{size / 1e9:.2f} GB of frames fit the device"
    if isinstance(episodes, FrameStore):
        return "memory", "the frames are in memory already"
    assert episodes.strips is not None
    if episodes.strips.codec.name == "raw":
        return "memory", "raw shards are mapped from disk"
    if size <= SHARE * free_bytes(host):
        return "memory", f"{size / 1e9:.2f} GB of decoded frames fit the host's memory"
    return "dali", f"{size / 1e9:.1f} GB of decoded frames do not fit the host's memory"


def _device() -> torch.device:
    """The device that this process trains on."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def _threads() -> int:
    """DALI's threads in this process: its share of the cores, at most 4."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(4, len(os.sched_getaffinity(0)) // processes))
