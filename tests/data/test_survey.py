"""The look at the data before training: what can't be learnt is said, in whatever way the data is read."""

import numpy as np
import pytest
import torch
from made_recordings import columns, write_hdf5

from aime_fast.config import LoaderConfig
from aime_fast.data import store
from aime_fast.data.backends import open_backend, stream
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.data.survey import FrameSurvey, action_limits

LENGTHS = [40, 16, 33, 5, 17]
KINDS = ("resident", "memory", "dali", "dali-stream", "webdataset", "pipe")
STILL = "frames never change within an episode: no motion can be learnt"
ONE_COLOUR = "every frame has only one colour: no shapes can be learnt"
NO_ACTIONS = "there are no actions: only what happens by itself can be learnt"
CONSTANT = "the actions are constant: the model can't learn what they do"


def still(data):
    first = np.repeat(data["episode_ends"] - LENGTHS, LENGTHS)
    return data | {"observations": data["observations"][first]}


def packed(folder, data, **options):
    return pack(write_hdf5(folder / "recording.h5", data), folder / "shards", chunks_per_shard=3, **options)


def surveyed(kind, folder):
    path = f"pipe:cat '{folder}'/{{}}" if kind == "pipe" else folder
    backend = open_backend("webdataset" if kind == "pipe" else kind, path, LoaderConfig(batch_size=3), "train", 0)
    return backend, backend.survey()


@pytest.mark.parametrize("kind", KINDS)
def test_every_back_end_says_the_same(kind, tmp_path, monkeypatch):
    """Still images without actions, in raw shards; also that windows of such actions are read."""
    monkeypatch.setattr(stream, "BLOCK_FRAMES", 4 * 16)
    data = still(columns(LENGTHS)) | {"actions": np.zeros((sum(LENGTHS), 0), np.float32)}
    backend, survey = surveyed(kind, packed(tmp_path, data, val_episodes=1))
    assert [line.partition(" (")[0] for line in survey.limits] == [NO_ACTIONS, STILL]
    assert backend.action_dim == 0
    batch = backend.batch(0)
    assert batch.actions.shape == (3, 16, 0) and batch.actions.dtype == torch.float32
    if isinstance(backend, stream.StreamBackend):
        backend._thread.shutdown()  # its commands would fork while a later test has files open


@pytest.mark.parametrize("codec", ["raw", "png", "jpg"])
def test_data_with_motion_and_actions_has_no_limits(codec, tmp_path):
    folder = packed(tmp_path, columns(LENGTHS), codec=codec)
    assert surveyed("memory", folder)[1].limits == []
    assert "limit " not in inspect(folder)


def test_a_late_change_counts_even_of_one_level():
    frames = np.full((20, 16, 16, 3), 7, np.uint8)
    seen = FrameSurvey(16, 40)
    seen.see(0, frames)
    seen.see(1, frames + 1)
    assert [line.partition(":")[0] for line in seen.limits()] == [
        "frames never change within an episode",
        "every frame has only one colour",
    ]
    assert seen.part == ""
    changed = frames.copy()
    changed[-1, 3, 5, 2] += 1
    seen = FrameSurvey(16, 40)
    seen.see(0, frames)
    seen.see(0, changed)
    assert seen.limits() == []


def test_a_change_between_chunks_of_an_episode_is_motion():
    seen = FrameSurvey(16, 100)
    for level in (3, 4):
        seen.see(5, np.full((16, 16, 16, 3), level, np.uint8))
    assert seen.limits() == [f"{ONE_COLOUR} (32 of 100 frames were looked at)"]
    assert torch.equal(seen.mean_frame(), torch.full((3, 16, 16), 3.5 / 127.5 - 1))


def test_nothing_is_said_of_frames_that_were_not_seen():
    seen = FrameSurvey(32, 9)
    assert seen.limits() == [] and torch.equal(seen.mean_frame(), torch.full((3, 32, 32), -1.0))


def test_actions():
    assert action_limits(np.zeros(0), np.zeros(0)) == [NO_ACTIONS]
    assert action_limits(np.array([0.5, -1]), np.array([0.5, -1]), " (part)") == [f"{CONSTANT} (part)"]
    assert action_limits(np.array([0.5, -1]), np.array([0.5, -0.999])) == []


def test_a_large_set_is_sampled(monkeypatch, tmp_path):
    """Of nine chunks in four training episodes three are read, so the line says how many frames these are."""
    monkeypatch.setattr(store, "SURVEYED_CHUNKS", 3)
    folder = packed(tmp_path, still(columns(LENGTHS)), val_episodes=1)
    # Chunks 0, 4 and 7 of 3 + 1 + 3 + 1.
    assert surveyed("memory", folder)[1].limits == [f"{STILL} (37 of 94 frames were looked at)"]


def test_inspection_reads_some_episodes_or_all(tmp_path):
    data = columns([6] * 9)
    data["observations"][:] = 9
    data["actions"][:] = 0.25
    data["observations"][6:12] += np.arange(6, dtype=np.uint8)[:, None, None, None]
    recording = write_hdf5(tmp_path / "recording.h5", data)
    # Episodes 0, 3, 5 and 8; only in episode 1 does anything change.
    shown = [line for line in inspect(recording).splitlines() if line.startswith("limit")]
    part = " (24 of 54 frames were looked at)"
    assert shown == [f"limit          {line}{part}" for line in (CONSTANT, STILL, ONE_COLOUR)]
    deep = [line for line in inspect(recording, deep=True).splitlines() if line.startswith("limit")]
    assert deep == [f"limit          {line}" for line in (CONSTANT, ONE_COLOUR)]
