"""Values no honest writer makes: each becomes one line that names the file, never a traceback or a batch."""

import json
import pickle
import random
import shutil

import h5py
import numpy as np
import pytest
import torch
from made_recordings import columns, write_hdf5
from test_hard_inputs import forge, member, png_header, read_everything, refusal

from aime_fast.data.dataset import DMCVBDataset
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.data.sources import open_source
from aime_fast.data.store import open_store
from aime_fast.data.windows import WindowSampler, valid_starts
from aime_fast.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    recording = write_hdf5(folder / "r.h5", columns([20, 17, 18], seed=4))
    return {codec: pack(recording, folder / codec, codec=codec) for codec in ("raw", "png")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(environment=5), "environment: Input should be a valid string, found 5"),
        (lambda m: m.update(convention="actions[t] led to observations[t]"), "another convention"),
        (lambda m: m["action_statistics"].update(median=[1.0]), "action statistics are not four rows"),
        (lambda m: m["action_statistics"]["mean"].__setitem__(0, 10**400), "finite number"),
        (lambda m: m["shards"][0].update(file="a\0.tar"), "shards.0.file: String should match pattern"),
        (lambda m: m["shards"][0].update(file="\ud800.tar"), "Invalid JSON"),
    ],
)
def test_an_edited_manifest(whole, tmp_path, change, words):
    folder = shutil.copytree(whole["raw"], tmp_path / "shards")
    fields = json.loads((folder / "manifest.json").read_text())
    change(fields)
    (folder / "manifest.json").write_text(json.dumps(fields))
    for message in (refusal(read_everything, folder), refusal(inspect, folder)):
        assert "manifest.json" in message
        assert words in message


def test_a_manifest_nested_beyond_reading(tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    assert "manifest.json: cannot be read" in refusal(inspect, tmp_path)


@pytest.mark.parametrize(
    ("codec", "ending", "change", "words"),
    [
        ("raw", "meta", lambda d: d.replace(b'"act":', b'"act":1e999,"x":'), "meta member is damaged"),
        ("raw", "act", lambda d: b"\0\0\xc0\x7f" + d[4:], "actions hold NaN"),
        ("raw", "rew", lambda d: d[:60] + b"\0\0\x80\x7f", "rewards hold NaN"),
        ("raw", "flags", lambda d: d[:2] + b"\x01" + d[3:], "marked as the end"),
        ("raw", "flags", lambda d: d[:15] + b"\x02", "marked as the end"),
        ("png", "obs.png", png_header(10_000, 10_000), "pixels are damaged"),
        ("png", "obs.png", png_header(64, 2**31 - 1), "pixels are damaged"),
    ],
)
def test_training_refuses_a_forged_chunk(whole, tmp_path, codec, ending, change, words):
    folder = shutil.copytree(whole[codec], tmp_path / "shards")
    forge(folder, ending, change(member(folder, ending)))
    message = refusal(read_everything, folder)
    assert "episode 0, frames 0 to 15" in message
    assert words in message


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_torch_file_never_shows_a_traceback(tmp_path, legacy):
    path, draw, refused = tmp_path / "damaged.pt", random.Random(0), 0
    content = {name: torch.from_numpy(values) for name, values in columns([2]).items()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole_file = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole_file)
        damaged[draw.randrange(1500)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            list(open_source(path).read())
        except UserError as error:
            assert "damaged.pt" in str(error)
            refused += 1
    assert refused > 50


def test_keys_that_are_no_names(tmp_path):
    torch.save({0: torch.zeros(3), None: torch.zeros(3), "actions": torch.zeros(3, 1)}, tmp_path / "keys.pt")
    assert "it holds actions." in refusal(open_source, tmp_path / "keys.pt")


def test_a_refused_torch_file_gets_no_advice_to_trust_it(tmp_path):
    (tmp_path / "object.pt").write_bytes(pickle.dumps({"observations": object()}))
    message = refusal(open_source, tmp_path / "object.pt")
    assert message.isprintable() and "weights_only" not in message


@pytest.mark.parametrize("name", ["actions", "rewards"])
def test_numbers_too_large_for_single_precision(tmp_path, name):
    data = columns([3])
    data[name] = np.full(data[name].shape, 1e300)
    path = write_hdf5(tmp_path / "large.h5", data)
    assert f"{name} hold NaN or infinity at frame 0" in refusal(lambda: list(open_source(path).read()))


def test_an_environment_named_in_bytes(tmp_path):
    path = write_hdf5(tmp_path / "bytes.h5", columns([30]), environment=None)
    with h5py.File(path, "r+") as file:
        file.attrs["env"] = np.bytes_(b"reacher_easy")
    assert open_store(path, "train").environment == "reacher_easy"
    assert "recorded in reacher_easy" in refusal(DMCVBDataset, path, environment="cheetah_run")


def test_names_that_are_too_long(whole, tmp_path):
    long = tmp_path / ("a" * 300)
    assert "no such file" in refusal(pack, long, tmp_path / "out")
    assert "no such file" in refusal(open_store, long, "train")
    assert "cannot be written" in refusal(pack, whole["raw"], long)
    assert "cannot be written" in refusal(inspect, whole["raw"], contact_sheet=long)


def test_a_seed_or_stride_out_of_range():
    assert "less than 2**64" in refusal(WindowSampler, [20], 16, 4, 2**64)
    assert len(WindowSampler([20], 16, 4, 2**64 - 1).batch(0)) == 4
    assert "stride of windows is 0" in refusal(valid_starts, [20], 16, 0)
