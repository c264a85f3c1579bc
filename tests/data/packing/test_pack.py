import hashlib
import io
import json
import os
import tarfile
import zlib

import h5py
import numpy as np
import pytest
from made_recordings import LENGTHS, columns, write_hdf5
from PIL import Image

from aime_fast.data.files import SAMPLE
from aime_fast.data.packing import pack as pack_module
from aime_fast.data.packing.pack import pack
from aime_fast.data.store import open_store
from aime_fast.errors import UserError


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def unpacked(folder):
    """Columns and lengths of a folder of shards, read with `tarfile`, `json` and Pillow alone."""
    manifest = json.loads((folder / "manifest.json").read_text())
    chunks = {}
    for shard in manifest["shards"]:
        with tarfile.open(folder / shard["file"]) as archive:
            for member in archive:
                stem, _, ending = member.name.partition(".")
                chunks.setdefault(stem, {})[ending] = archive.extractfile(member).read()
    columns = {"observations": [], "actions": [], "rewards": [], "flags": []}
    lengths = {}
    for stem in sorted(chunks):
        parts = chunks[stem]
        meta = json.loads(parts["meta"])
        assert stem == f"{meta['episode']:06d}_{meta['start']:06d}"
        assert meta["start"] == lengths.get(meta["episode"], 0)
        assert meta["length"] == 16 or meta["start"] + meta["length"] == LENGTHS[meta["episode"]]
        assert {e: zlib.crc32(d) for e, d in parts.items() if e != "meta"} == meta["crc32"]
        lengths[meta["episode"]] = meta["start"] + meta["length"]
        pixels = parts.get("obs.raw")
        pixels = np.frombuffer(pixels, np.uint8) if pixels else np.array(Image.open(io.BytesIO(parts["obs.png"])))
        columns["observations"].append(pixels.reshape(meta["length"], 64, 64, 3))
        columns["actions"].append(np.frombuffer(parts["act"], "<f4").reshape(meta["length"], -1))
        columns["rewards"].append(np.frombuffer(parts["rew"], "<f4"))
        columns["flags"].append(np.frombuffer(parts["flags"], np.uint8))
    return manifest, list(lengths.values()), {name: np.concatenate(parts) for name, parts in columns.items()}


@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("chunks_per_shard", [1, 4, 1000])
def test_shards_hold_the_source_bit_for_bit(recording, data, tmp_path, codec, chunks_per_shard):
    out = pack(recording, tmp_path / "out", codec=codec, chunks_per_shard=chunks_per_shard)
    manifest, lengths, found = unpacked(out)
    assert lengths == LENGTHS
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(found[name], data[name])
    np.testing.assert_array_equal(found["flags"], np.where(data["terminated"], 1, 2 * data["dones"]))
    assert manifest["environment"] == "reacher_easy"
    assert [entry["split"] for entry in manifest["episodes"]] == ["train"] * 4 + ["val"]
    for shard in manifest["shards"]:
        assert hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    training = data["actions"][: sum(LENGTHS[:4])].astype(np.float64)
    for name, value in (("mean", training.mean(0)), ("std", training.std(0)), ("min", training.min(0))):
        np.testing.assert_allclose(manifest["action_statistics"][name], value, atol=1e-6)
    # And what the package itself reads back is the same.
    store = open_store(out, "all")
    batch = store.gather(np.array([[2, 3]]), 30)
    first = LENGTHS[0] + LENGTHS[1] + 3
    np.testing.assert_array_equal(batch.observations[0].numpy(), data["observations"][first : first + 30])


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_the_same_source_gives_the_same_bytes(recording, tmp_path, codec):
    first = pack(recording, tmp_path / "first", codec=codec, chunks_per_shard=3)
    again = pack(recording, tmp_path / "again", codec=codec, chunks_per_shard=3)
    assert files(first) == files(again)
    through = pack(pack(recording, tmp_path / "other", codec="png"), tmp_path / "back", codec=codec, chunks_per_shard=3)
    assert files(first) == files(through)


def test_the_sample_is_what_packing_its_recording_gives(tmp_path):
    """Its recording is written again as HDF5 by other means, and packed."""
    store = open_store(None, "all")
    assert store.lengths == [128] * 10
    whole = store.gather(np.stack([np.arange(10), np.zeros(10, np.int64)], 1), 128)
    with h5py.File(tmp_path / "cheetah_run.h5", "w") as file:
        file["observations"] = whole.observations.numpy().reshape(-1, 64, 64, 3)
        file["actions"] = whole.actions.numpy().reshape(1280, 6)
        file["rewards"] = whole.rewards.numpy().reshape(1280)
        file["dones"] = whole.dones.numpy().reshape(1280).astype(np.uint8)
        file["episode_ends"] = np.arange(1, 11) * 128
        file.attrs["env"] = "cheetah_run"
    again = pack(tmp_path / "cheetah_run.h5", tmp_path / "again", codec="png", val_episodes=2)
    shipped, made = (json.loads((folder / "manifest.json").read_text()) for folder in (SAMPLE, again))
    if shipped["encoder"] == made["encoder"]:
        assert files(again) == files(SAMPLE)
    for manifest in (shipped, made):
        # Another release of the PNG library may compress the same pixels to other bytes.
        del manifest["encoder"], manifest["shards"]
    assert made == shipped
    other = open_store(again, "all").gather(np.stack([np.arange(10), np.zeros(10, np.int64)], 1), 128)
    assert (other.observations == whole.observations).all()
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 8e6


def test_the_index_is_the_one_dali_makes(recording, tmp_path):
    wds2idx = pytest.importorskip("wds2idx", reason="comes with DALI")
    out = pack(recording, tmp_path / "out", codec="png", chunks_per_shard=4)
    shards = sorted(out.glob("*.tar"))
    assert len(shards) > 1
    for shard in shards:
        with wds2idx.IndexCreator(str(shard), str(tmp_path / "dali.idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "dali.idx").read_bytes() == shard.with_suffix(".idx").read_bytes()


def test_the_split_is_by_episode_and_by_seed(recording, tmp_path):
    def validation(name, **options):
        out = pack(recording, tmp_path / name, **options)
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["split_seed"] == options.get("seed")
        return tuple(entry["id"] for entry in manifest["episodes"] if entry["split"] == "val")

    assert validation("last", val_episodes=2) == (3, 4)
    assert validation("none", val_episodes=0) == ()
    drawn = {seed: validation(f"s{seed}", val_episodes=2, seed=seed) for seed in range(8)}
    assert all(len(set(episodes)) == 2 for episodes in drawn.values())
    assert len(set(drawn.values())) > 2
    assert drawn[3] == validation("again", val_episodes=2, seed=3)


def test_nothing_is_replaced_unasked(recording, tmp_path):
    out = pack(recording, tmp_path / "out", codec="png")
    before = files(out)
    with pytest.raises(UserError, match="exists already"):
        pack(recording, out)
    assert files(out) == before
    pack(recording, out, force=True)
    assert files(out) != before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="not a folder of shards"):
        pack(recording, precious, force=True)
    assert files(precious) == {"thesis.tex": b"years"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "precious", "recording.h5"]


def test_a_failed_pack_leaves_nothing_and_keeps_what_was(recording, tmp_path, data, monkeypatch):
    out = pack(recording, tmp_path / "out")
    before, listing = files(out), sorted(os.listdir(tmp_path))
    bad = columns()
    bad["actions"][sum(LENGTHS) - 1] = np.nan
    write_hdf5(recording, bad)
    with pytest.raises(UserError, match="episode 4: actions hold NaN or infinity at frame 16"):
        pack(recording, out, force=True)
    write_hdf5(recording, data)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_module.Manifest, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        pack(recording, out, force=True)
    with pytest.raises(UserError, match="No space left on device"):
        pack(recording, tmp_path / "new")
    assert files(out) == before
    assert sorted(os.listdir(tmp_path)) == listing


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(codec="webp"), "unknown codec 'webp'; choose from raw, png, jpg"),
        (dict(val_episodes=5), "leave nothing to train on"),
        (dict(val_episodes=-1), "leave nothing to train on"),
        (dict(seed=-1), "seed is -1"),
        (dict(chunks_per_shard=0), "chunks_per_shard is 0"),
        (dict(environment="cheetah_run"), "recorded in reacher_easy, not in cheetah_run"),
    ],
)
def test_impossible_choices_are_refused(recording, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        pack(recording, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_recording_without_a_name_is_named(tmp_path):
    path = write_hdf5(tmp_path / "r.h5", columns([20, 20]), environment=None)
    out = pack(path, tmp_path / "out", environment="walker_walk")
    assert json.loads((out / "manifest.json").read_text())["environment"] == "walker_walk"


def test_no_path_of_this_machine_enters_the_files(recording, tmp_path):
    out = pack(recording, tmp_path / "out")
    for name, content in files(out).items():
        assert str(tmp_path).encode() not in content, name
