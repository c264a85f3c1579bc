"""A damaged chunk stops the run, or gives way to the next window: it never becomes a wrong frame."""

import json
import logging
import shutil
import zlib

import numpy as np
import pytest
import torch
from made_recordings import LENGTHS, columns, write_hdf5

from aime_fast.config import LoaderConfig
from aime_fast.data.backends import open_backend, stream
from aime_fast.data.packing.pack import pack
from aime_fast.errors import UserError

EXACT, STREAMS = ("memory", "resident", "dali"), ("dali-stream", "webdataset")
FIELDS = ("observations", "actions", "rewards", "dones", "terminated")
CODECS = ("raw", "png", "jpg")
BAD = {(0, frame) for frame in range(16, 32)}
"""The second chunk of the first episode."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    recording = write_hdf5(folder / "r.h5", columns())
    return {codec: pack(recording, folder / codec, codec=codec) for codec in CODECS}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_FRAMES", 24 * 16)


def damaged(folder, to, ending, forged=False):
    """A copy of the shards in which one member of the chunk of `BAD` is damaged; `forged`: with a checksum to match."""
    folder = shutil.copytree(folder, to)
    shard = folder / "shard-000000.tar"
    data, row = bytearray(shard.read_bytes()), shard.with_suffix(".idx").read_text().splitlines()[2].split(" ")
    places = {row[i]: (int(row[i + 1]), int(row[i + 2])) for i in range(0, len(row), 4)}
    ending = next(name for name in places if name.startswith(ending))
    offset, size = places[ending]
    if forged:  # a header of the right size before pixels that make no sense
        data[offset + size // 2 : offset + size] = bytes(size - size // 2)
        at, length = places["meta"]
        meta = json.loads(data[at : at + length])
        old, new = str(meta["crc32"][ending]), str(zlib.crc32(data[offset : offset + size]))
        text = data[at : at + length].replace(old.encode(), new.encode())
        assert len(text) <= 512
        lines = shard.with_suffix(".idx").read_text().splitlines()
        row[row.index("meta") + 2] = str(len(text))
        lines[2] = " ".join(row)
        shard.with_suffix(".idx").write_text("\n".join(lines) + "\n")
        data[at - 512 : at + 512] = header(f"{row[-1]}", len(text)) + text.ljust(512, b"\0")
    else:
        data[offset + size // 2] ^= 1
    shard.write_bytes(data)
    return folder


def header(name, size):
    """A USTAR header as Python's own library writes it."""
    import tarfile

    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def opened(kind, path, policy="skip", split="train", batch_size=5):
    return open_backend(kind, path, LoaderConfig(batch_size=batch_size, sequence_length=8), split, 3, policy)


def touches(episode, start):
    return any((episode, frame) in BAD for frame in range(start, start + 8))


@pytest.mark.parametrize("ending", ["obs", "act", "rew", "flags", "meta"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_default_names_what_is_damaged(whole, tmp_path, codec, ending):
    folder = damaged(whole[codec], tmp_path / "bad", ending)
    for kind in (*EXACT, *STREAMS):
        with pytest.raises(UserError) as error:
            backend = opened(kind, folder, "raise")
            for step in range(30):
                backend.batch(step)
        message = str(error.value)
        assert "shard-000000.tar, episode 0, frames 16 to 31" in message and "\n" not in message, kind


@pytest.mark.parametrize("ending", ["obs", "act"])
@pytest.mark.parametrize("codec", CODECS)
def test_exact_back_ends_put_the_next_window_in_its_place(whole, tmp_path, caplog, codec, ending):
    """And count it, and say so in one line for the chunk, and agree with one another and with every world size."""
    folder = damaged(whole[codec], tmp_path / "bad", ending)
    sound = opened("memory", whole[codec])
    skipped = set()
    for kind in EXACT:
        caplog.clear()
        backend, replaced = opened(kind, folder), 0
        for step in range(12):
            batch = backend.batch(step)
            numbers = [step * 5 + row for row in range(5)]
            wanted = []
            for number in numbers:
                while touches(*sound.sampler.windows(np.array([number]))[0].tolist()):
                    number, replaced = number + 1, replaced + 1
                wanted.append(sound.sampler.windows(np.array([number]))[0])
            expected = sound.read(np.stack(wanted))
            for name in FIELDS:
                assert torch.equal(getattr(batch, name), getattr(expected, name)), (kind, name)
        if kind != "dali":  # has counted ahead
            assert backend.skipped == replaced > 0
        skipped.add(backend.skipped >= replaced)
        lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len(lines) == 1 and "episode 0, frames 16 to 31" in lines[0] and "\n" not in lines[0]
    assert skipped == {True}


@pytest.mark.parametrize("kind", EXACT)
def test_ranks_skip_alike(whole, tmp_path, kind):
    folder = damaged(whole["raw"], tmp_path / "bad", "obs")
    for step in range(4):
        whole_batch = opened(kind, folder).batch(step)
        parts = [opened(kind, folder).batch(step, rank, 3) for rank in range(3)]
        assert torch.equal(torch.cat([part.actions for part in parts]), whole_batch.actions)


@pytest.mark.parametrize("kind", EXACT)
def test_evaluation_and_mean_frame_leave_the_chunk_out(whole, tmp_path, kind):
    folder = damaged(whole["raw"], tmp_path / "bad", "obs")
    backend = opened(kind, folder)
    found = torch.cat([batch.actions for batch in backend.evaluation_windows(1)])
    starts = [(e, s) for e, n in enumerate(LENGTHS[:4]) for s in range(n - 7) if not touches(e, s)]
    assert len(found) == len(starts)
    frames = columns()["observations"][: sum(LENGTHS[:4])]
    kept = np.concatenate([frames[:16], frames[32:]])
    mean = torch.from_numpy(kept.mean(0, dtype=np.float64) / 127.5 - 1).movedim(-1, 0).float()
    torch.testing.assert_close(backend.survey().mean_frame, mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ending", ["obs", "rew"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", STREAMS)
def test_streams_give_only_sound_windows(whole, tmp_path, caplog, kind, codec, ending):
    folder = damaged(whole[codec], tmp_path / "bad", ending)
    backend, sound = opened(kind, folder), opened("memory", whole[codec])
    every = {batch.actions[0].numpy().tobytes(): batch for batch in map(sound.read, sound.sampler._starts[:, None])}
    for step in range(30):
        batch = backend.batch(step)
        for row in range(len(batch)):
            expected = every[batch.actions[row].numpy().tobytes()]
            for name in FIELDS:
                assert torch.equal(getattr(batch, name)[row], getattr(expected, name)[0])
    assert backend.skipped > 0
    lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1 and "episode 0, frames 16 to 31" in lines[0]
    again = opened(kind, folder).batch(29)
    assert torch.equal(again.observations, batch.observations)


@pytest.mark.parametrize("kind", [*EXACT, *STREAMS])
def test_a_picture_that_does_not_decode_is_damaged_too(whole, tmp_path, kind):
    """Its checksum is right, and so is its header: only decoding shows it (a PNG's own checks do)."""
    folder = damaged(whole["png"], tmp_path / "bad", "obs", forged=True)
    with pytest.raises(UserError, match="episode 0, frames 16 to 31"):
        backend = opened(kind, folder, "raise")
        for step in range(30):
            backend.batch(step)
    backend, sound = opened(kind, folder), opened("memory", whole["png"])
    every = {batch.actions[0].numpy().tobytes(): batch for batch in map(sound.read, sound.sampler._starts[:, None])}
    for step in range(20):
        batch = backend.batch(step)
        for row in range(len(batch)):
            assert torch.equal(batch.observations[row], every[batch.actions[row].numpy().tobytes()].observations[0])
    assert backend.skipped > 0


def test_nothing_but_damage_is_an_error(whole, tmp_path):
    folder = shutil.copytree(whole["raw"], tmp_path / "bad")
    shard = folder / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    for line in shard.with_suffix(".idx").read_text().splitlines()[1:]:
        data[int(line.split(" ")[1])] ^= 1
    shard.write_bytes(data)
    for kind in (*EXACT, *STREAMS):
        with pytest.raises(UserError, match="damaged chunk"):
            opened(kind, folder).batch(0)


def test_an_unknown_policy_is_refused(whole):
    with pytest.raises(UserError, match="unknown on_bad_sample 'ignore'; choose from raise, skip"):
        opened("memory", whole["raw"], "ignore")
