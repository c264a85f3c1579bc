"""Inputs that are wrong in ways checksums do not show: forged shards, strange columns, impossible paths.

A forged shard has a valid index and crc32 around a member that makes no sense, as another program might write it.
"""

import json
import os
import shutil
import struct
import zlib

import h5py
import numpy as np
import pytest
import torch
from made_recordings import columns, write_hdf5

from aime_fast.config import LoaderConfig
from aime_fast.data.backends import open_backend
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.data.sources import open_source
from aime_fast.errors import UserError

SHARD, INDEX = "shard-000000.tar", "shard-000000.idx"
BLOCK = 512


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    recording = write_hdf5(folder / "r.h5", columns([20, 17, 18], seed=4))
    return {codec: pack(recording, folder / codec, codec=codec) for codec in ("raw", "png")}


def read_everything(folder):
    config = LoaderConfig(batch_size=4, sequence_length=6)
    for split in ("train", "val"):
        for _ in open_backend("memory", folder, config, split, 0).evaluation_windows(1):
            pass


def refusal(read, *arguments, **options):
    """The message of the `UserError` that `read` raises: one line."""
    with pytest.raises(UserError) as error:
        read(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def forge(folder, ending, content):
    """Put `content` in place of a member of the first chunk, with the index and the chunk's crc32 made to agree."""
    data, lines = bytearray((folder / SHARD).read_bytes()), (folder / INDEX).read_text().splitlines()
    row = lines[1].split(" ")
    at = {row[i]: (i, int(row[i + 1]), int(row[i + 2])) for i in range(0, len(row), 4)}

    def put(ending, content):
        column, offset, size = at[ending]
        room = -(-size // BLOCK) * BLOCK
        assert len(content) <= room
        data[offset : offset + room] = content.ljust(room, b"\0")
        row[column + 2] = str(len(content))

    _, offset, size = at["meta"]
    meta = json.loads(data[offset : offset + size])
    put(ending, content)
    if ending != "meta":
        meta["crc32"][ending] = zlib.crc32(content)
        put("meta", json.dumps(meta).encode())
    lines[1] = " ".join(row)
    (folder / INDEX).write_text("\n".join(lines) + "\n")
    (folder / SHARD).write_bytes(data)


def member(folder, ending):
    """Bytes of a member of the first chunk."""
    row = (folder / INDEX).read_text().splitlines()[1].split(" ")
    offset, size = (int(number) for number in row[row.index(ending) + 1 : row.index(ending) + 3])
    return (folder / SHARD).read_bytes()[offset : offset + size]


def png_header(width, height, depth=8, colour=2):
    """What turns a PNG picture into one whose header, checksum included, claims this."""
    fields = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return lambda picture: picture[:12] + fields + struct.pack(">I", zlib.crc32(fields)) + picture[33:]


@pytest.mark.parametrize(
    ("codec", "ending", "change", "words"),
    [
        ("raw", "meta", lambda d: b"null", "meta member is damaged"),
        ("raw", "meta", lambda d: b"[" * BLOCK, "meta member is damaged"),
        ("raw", "meta", lambda d: b"\xff" + d, "meta member is damaged"),
        ("raw", "meta", lambda d: d.replace(b'"act":', b'"act":null,"x":'), "meta member is damaged"),
        ("raw", "meta", lambda d: d.replace(b'"act":', b'"act":-'), "act is damaged"),
        ("raw", "meta", lambda d: d.replace(b'"length":16', b'"length":"16"'), "the chunk says it is"),
        ("raw", "meta", lambda d: d.replace(b'"episode":0', b'"episode":1'), "the chunk says it is"),
        ("raw", "act", lambda d: d[:-4], "act has 188 bytes, expected 192"),
        ("raw", "rew", lambda d: d + d, "rew has 128 bytes, expected 64"),
        ("raw", "flags", lambda d: d[:-1], "flags has 15 bytes, expected 16"),
        ("raw", "obs.raw", lambda d: d[:-1], "obs.raw has 196607 bytes, expected 196608"),
        ("png", "obs.png", png_header(64, 1023), "pixels are damaged"),
        ("png", "obs.png", png_header(0, 0), "pixels are damaged"),
        ("png", "obs.png", png_header(64, 1024, colour=0), "pixels are damaged"),
        ("png", "obs.png", lambda d: d[:60], "pixels are damaged"),
        ("png", "obs.png", lambda d: d[: len(d) // 2], "pixels are damaged"),
        ("png", "obs.png", lambda d: b"GIF89a" + d[6:], "pixels are damaged"),
    ],
)
def test_a_forged_chunk(whole, tmp_path, codec, ending, change, words):
    folder = shutil.copytree(whole[codec], tmp_path / "shards")
    forge(folder, ending, change(member(folder, ending)))
    for message in (refusal(read_everything, folder), refusal(inspect, folder, deep=True)):
        assert f"{SHARD}, episode 0, frames 0 to 15" in message
        assert words in message
    assert words in refusal(pack, folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("ending", "change", "words"),
    [
        ("act", lambda d: b"\0\0\xc0\x7f" + d[4:], "actions hold NaN or infinity"),
        ("rew", lambda d: d[:60] + b"\0\0\x80\x7f", "rewards hold NaN or infinity"),
        ("flags", lambda d: d[:2] + b"\x01" + d[3:], "is marked as the end"),
    ],
)
def test_values_that_packing_refuses_are_found_by_a_deep_look(whole, tmp_path, ending, change, words):
    folder = shutil.copytree(whole["raw"], tmp_path / "shards")
    forge(folder, ending, change(member(folder, ending)))
    assert words in refusal(inspect, folder, deep=True)
    assert words in refusal(pack, folder, tmp_path / "again")


def replaced(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def made(name, dtype):
    """What puts an empty column of a dtype in place of `name`."""

    def change(file):
        del file[name]
        file.create_dataset(name, (38,), dtype=dtype)

    return change


D = columns([20, 18])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("actions", D["actions"].astype(complex)), "actions are complex128, expected float32"),
        (replaced("actions", np.full((38, 3), b"a")), "expected float32"),
        (replaced("actions", D["actions"][..., None]), "expected [20, A]"),
        (replaced("actions", np.zeros(38, [("a", "f4")])), "expected float32"),
        (replaced("actions", 3.0), "no actions"),
        (replaced("actions", h5py.Empty("f4")), "no actions"),
        (replaced("actions", h5py.SoftLink("/nowhere")), "no actions"),
        (replaced("actions", h5py.ExternalLink("nowhere.h5", "/actions")), "no actions"),
        (made("actions", h5py.vlen_dtype(np.float32)), "actions are object, expected float32"),
        (made("dones", h5py.string_dtype()), "expected one truth value or number a frame"),
        (replaced("rewards", np.ones(38, np.int64)), "rewards are int64, expected float32"),
        (replaced("rewards", np.ones(38, bool)), "rewards are bool, expected float32"),
        (replaced("observations", np.zeros((38, 84, 84, 4), np.uint8)), "its pictures have 4 channels, expected 3"),
        (replaced("observations", D["observations"][..., 0]), "record RGB as uint8 [N,H,W,3]"),
        (replaced("observations", D["observations"].astype(np.int8)), "int8 from -128 to 127, expected uint8"),
        (replaced("episode_ends", np.array([[20], [38]])), "expected a row of integers"),
        (replaced("episode_ends", np.array([2**64 - 1], np.uint64)), "must rise from above 0 to 38"),
        (replaced("episode_ends", np.array([-1, 38])), "must rise from above 0 to 38"),
        (replaced("episode_ends", np.empty(0, np.int64)), "expected a row of integers"),
    ],
)
def test_a_strange_column(tmp_path, change, words):
    path = write_hdf5(tmp_path / "strange.h5", D)
    with h5py.File(path, "r+") as file:
        change(file)
    message = refusal(pack, path, tmp_path / "out")
    assert "strange.h5" in message
    assert words in message
    assert os.listdir(tmp_path) == ["strange.h5"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {**t, "actions": t["actions"].bfloat16()}, "bfloat16 has no NumPy form"),
        (lambda t: {**t, "actions": t["actions"].to_sparse()}, "no NumPy form"),
        (lambda t: {**t, "actions": t["actions"].to("meta")}, "no NumPy form"),
        (lambda t: {**t, "rewards": torch._neg_view(t["rewards"])}, "no NumPy form"),
        (lambda t: {"episodes": [t]}, "it holds nothing"),
        (lambda t: {}, "it holds nothing"),
        (lambda t: [t], "holds a list, expected a dict of tensors"),
        (lambda t: t["actions"], "holds a Tensor, expected a dict of tensors"),
        (lambda t: {name: tensor.numpy() for name, tensor in t.items()}, "not a torch file of plain tensors"),
        (lambda t: torch.nn.Linear(2, 2), "not a torch file of plain tensors"),
    ],
)
def test_a_strange_torch_file(tmp_path, change, words):
    torch.save(change({name: torch.from_numpy(values) for name, values in D.items()}), tmp_path / "strange.pt")
    message = refusal(lambda: list(open_source(tmp_path / "strange.pt").read()))
    assert "strange.pt" in message
    assert words in message


@pytest.mark.parametrize("force", [False, True])
def test_a_target_that_is_no_folder_is_never_touched(whole, tmp_path, force):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    for target in (path, path / "under"):
        assert "notes.txt" in refusal(pack, whole["raw"], target, force=force)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("name", ["loop", "nul\0byte", "folder.h5", "device"])
def test_a_path_that_leads_nowhere(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "device").symlink_to("/dev/null")
    message = refusal(open_backend, "auto", tmp_path / name, LoaderConfig(), "train", 0)
    assert str(tmp_path / name) in message


def test_shards_packed_onto_themselves_stay_whole(whole, tmp_path):
    folder = shutil.copytree(whole["raw"], tmp_path / "shards")
    pack(folder, folder, codec="png", force=True)
    assert "55 frames read, all whole" in inspect(folder, deep=True)
    assert os.listdir(tmp_path) == ["shards"]
