"""Back-ends: the ways in which windows are read, with one interface."""

import os
from pathlib import Path

import torch

from aime_fast.config import LoaderConfig
from aime_fast.data.action_origin import defined_by
from aime_fast.data.backends.backend import Backend, MemoryBackend, training_device
from aime_fast.data.backends.dali import DaliBackend
from aime_fast.data.backends.dali_stream import DaliStreamBackend
from aime_fast.data.backends.resident import ResidentBackend, free_bytes
from aime_fast.data.backends.stream import StreamBackend
from aime_fast.data.files import SAMPLE
from aime_fast.data.libraries import load_webdataset
from aime_fast.data.shards.manifest import EmptySplit
from aime_fast.data.store import Episodes, hold_frames, open_episodes
from aime_fast.data.streaming.reader import PIPE, Shards
from aime_fast.data.windows import NoWindow
from aime_fast.errors import UserError, unknown_name

__all__ = ["Backend", "open_backend", "open_validation"]

KINDS = ("auto", "resident", "memory", "dali", "dali-stream", "webdataset")
STREAMS = ("dali-stream", "webdataset")
BAD_SAMPLE = ("raise", "skip")
SHARE = 0.5
"""Largest fraction of the free memory, of the device or the host, that `auto` fills with frames."""


def open_backend(
    kind: str,
    path: str | Path | None,
    sampler_config: LoaderConfig,
    split: str = "train",
    seed: int = 0,
    on_bad_sample: str = "raise",
    actions: str | None = None,
) -> Backend:
    """Open the episodes of `split` (`train` or `val`) at `path`: a folder of shards, a recording, or `pipe:COMMAND`.

    `kind` is one of `KINDS`; `auto` chooses and gives the reason in `description`. Only training streams: for another
    split, a streaming kind opens `memory`. A `path` of None is the shipped sample; a recording is read at 64x64.
    `on_bad_sample="skip"` logs a damaged chunk and replaces a window that touches it by the next; with `raise` it is a
    `UserError`. `actions` is that of `open_source`, for a recording. `UserError` also for an unknown kind, bad data, or
    windows longer than every episode.
    """
    for name, value, known in (("backend", kind, KINDS), ("on_bad_sample", on_bad_sample, BAD_SAMPLE)):
        if value not in known:
            raise unknown_name(name, value, known)
    skips, device = on_bad_sample == "skip", training_device()
    why = ""
    if kind == "auto" and str(path).startswith(PIPE):
        kind, why = "webdataset", " (auto: a pipe can only be streamed)"
    if kind in STREAMS and split == "train":
        defined_by("aime-fast shards", actions, str(path or "the shipped sample"))
        return _open_stream(kind, kind + why, SAMPLE if path is None else path, sampler_config, seed, skips)
    episodes = open_episodes(path, split, skips, actions=actions)
    if kind in STREAMS:
        kind, why = "memory", f" ({kind} streams only for training)"
    elif kind == "auto":
        kind, reason = _choose(episodes, device)
        why = f" (auto: {reason})"
    if kind == "memory":
        episodes = hold_frames(episodes)
        return MemoryBackend(episodes, sampler_config, seed, f"memory{why}: {episodes.description}")
    description = f"{kind} on {device.type}{why}: {episodes.description}"
    backend = ResidentBackend if kind == "resident" else DaliBackend
    return backend(episodes, sampler_config, seed, description)


def open_validation(
    kind: str,
    path: str | Path | None,
    config: LoaderConfig,
    seed: int,
    on_bad_sample: str,
    actions: str | None = None,
) -> Backend | None:
    """`open_backend` of the held-out episodes; None if there are none, or none is as long as a window."""
    try:
        return open_backend(kind, path, config, "val", seed, on_bad_sample, actions)
    except (EmptySplit, NoWindow):
        return None


def _open_stream(
    kind: str, chosen: str, place: str | Path, config: LoaderConfig, seed: int, skips: bool
) -> StreamBackend:
    if os.path.isfile(place):
        raise UserError(f"{place}: backend {kind} reads shards; `aime-fast pack` the recording first")
    shards = Shards(place, skips)
    count = len(shards.manifest.shards)
    description = f"{chosen}: {place}, {count} {shards.codec.name} shard{'s' if count != 1 else ''} read in order"
    if kind == "dali-stream":
        return DaliStreamBackend(shards, config, seed, description)
    load_webdataset()
    return StreamBackend(shards, shards.read_with_webdataset, config, seed, description)


def _choose(episodes: Episodes, device: torch.device) -> tuple[str, str]:
    """The back-end for these episodes on this device, and the reason."""
    size, host = episodes.frame_bytes, torch.device("cpu")
    if device.type == "cuda" and size <= SHARE * free_bytes(device):
        return "resident", f"{size / 1e9:.2f} GB of frames fit the device"
    if episodes.held is not None:
        return "memory", "the frames are in memory already"
    assert episodes.chunks is not None
    if episodes.chunks.codec.name == "raw":
        return "memory", "raw shards are mapped from disk"
    if size <= SHARE * free_bytes(host):
        return "memory", f"{size / 1e9:.2f} GB of decoded frames fit the host's memory"
    return "dali", f"{size / 1e9:.1f} GB of decoded frames do not fit the host's memory"
