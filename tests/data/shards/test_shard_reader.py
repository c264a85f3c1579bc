"""Damage in every file of a folder of shards is found, and never read as frames."""

import json
import shutil

import numpy as np
import pytest
from made_recordings import columns, write_hdf5

from aime_fast.config import LoaderConfig
from aime_fast.data.backends import open_backend
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.errors import UserError

SHARD, INDEX, MANIFEST = "shard-000000.tar", "shard-000000.idx", "manifest.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    recording = write_hdf5(folder / "r.h5", columns([20, 17, 18], seed=4))
    return {codec: pack(recording, folder / codec, codec=codec) for codec in ("raw", "png", "jpg")}


@pytest.fixture(params=["raw", "png", "jpg"])
def shards(request, whole, tmp_path):
    return shutil.copytree(whole[request.param], tmp_path / "shards")


def read_everything(folder):
    """Train and validate once over all windows; the bytes seen."""
    config = LoaderConfig(batch_size=4, sequence_length=6)
    seen = []
    for split in ("train", "val"):
        for batch in open_backend("memory", folder, config, split, 0).evaluation_windows(1):
            seen += [batch.observations.numpy().tobytes(), batch.actions.numpy().tobytes()]
    return b"".join(seen)


def assert_refused(folder, words=""):
    for read in (read_everything, lambda folder: inspect(folder, deep=True)):
        with pytest.raises(UserError) as error:
            read(folder)
        message = str(error.value)
        assert str(folder) in message
        assert words in message
        assert "\n" not in message


def edit(folder, change):
    fields = json.loads((folder / MANIFEST).read_text())
    change(fields)
    (folder / MANIFEST).write_text(json.dumps(fields))


def narrow(manifest):
    """Claim one action number fewer, without contradiction in the manifest itself."""
    manifest["action_dim"] -= 1
    for row in manifest["action_statistics"].values():
        row.pop()


@pytest.mark.parametrize("name", [SHARD, INDEX, MANIFEST])
@pytest.mark.parametrize("keep", [0, 1, 0.3, 0.9, -1])
def test_a_cut_file(shards, name, keep):
    path = shards / name
    content = path.read_bytes()
    length = int(keep * len(content)) if isinstance(keep, float) else keep
    # The last byte of the manifest is its line end, which nothing needs.
    path.write_bytes(content[: length - 1 if keep == -1 and name == MANIFEST else length])
    assert_refused(shards, name)


@pytest.mark.parametrize("name", [SHARD, INDEX, MANIFEST])
def test_a_missing_file(shards, name):
    (shards / name).unlink()
    assert_refused(shards, name)


def test_a_flipped_bit_is_found_or_harmless(shards):
    """Anywhere in the shard: training refuses it, or sees the very bytes that were packed; a deep look refuses it."""
    path = shards / SHARD
    content, before = path.read_bytes(), read_everything(shards)
    random, refused = np.random.default_rng(1), 0
    for place in random.integers(0, len(content), 60).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            assert read_everything(shards) == before
        except UserError as error:
            assert SHARD in str(error)
            refused += 1
        with pytest.raises(UserError, match=SHARD):
            inspect(shards, deep=True)
    assert refused > 20


def test_the_message_names_episode_and_frames(shards):
    line = (shards / INDEX).read_text().splitlines()[4].split(" ")
    assert line[3].startswith("000001_000016.obs")
    content = bytearray((shards / SHARD).read_bytes())
    content[int(line[1]) + 40] ^= 1
    (shards / SHARD).write_bytes(content)
    assert_refused(shards, f"{SHARD}, episode 1, frames 16 to 16")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("000000_000016.act", "000000_000000.act", "missing or misnamed"),
        ("000000_000016.act", "../../../etc.act", "leads out of the folder"),
        ("000000_000016.act", "/etc/passwd", "leads out of the folder"),
        ("v1.2 6", "v1.2 5", "not an index of 6 chunks"),
        ("v1.2 6", "v9.9 6", "not an index of 6 chunks"),
        ("rew ", "rew -", "points outside the shard"),
        ("rew ", "rew 99999999", "points outside the shard"),
        ("rew ", "rew x", "holds no numbers"),
        ("rew ", "extra 1 2 3 rew ", "missing or misnamed"),
    ],
)
def test_an_edited_index(shards, old, new, words):
    text = (shards / INDEX).read_text()
    assert old in text
    (shards / INDEX).write_text(text.replace(old, new, 1))
    assert_refused(shards, words)


def test_swapped_chunks(shards):
    """Two chunks that are whole, each in the other's place."""
    head, first, second, *rest = (shards / INDEX).read_text().splitlines()
    names = [line.split(" ")[3::4] for line in (first, second)]
    for old, new in zip(*names, strict=True):
        first, second = first.replace(old, new), second.replace(new, old)
    (shards / INDEX).write_text("\n".join([head, second, first, *rest]) + "\n")
    assert_refused(shards, "the chunk says it is")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(version=3), "newer than the 2 this release reads; update aime-fast"),
        (lambda m: m.update(version="1"), "version: Input should be a valid integer"),
        (lambda m: m.update(format="other"), "not a manifest of aime-fast shards"),
        (lambda m: m.update(codec="webp"), "unknown codec 'webp'"),
        (lambda m: m.update(lossy=None), "lossy: Input should be a valid boolean"),
        (lambda m: m.update(notes="none"), "notes: Input should be a valid array"),
        (lambda m: m.update(image_size=100), "image_size: Input should be a multiple of 16, found 100"),
        (lambda m: m.update(image_size=128), "shard-000000.tar, episode 0, frames 0 to 15"),
        (lambda m: m.update(action_dim=2), "action statistics are not four rows of 2 numbers"),
        (
            lambda m: m["action_statistics"]["mean"].__setitem__(0, "x"),
            "action_statistics.mean.0: Input should be a valid number",
        ),
        (
            lambda m: m["action_statistics"]["std"].__setitem__(0, float("nan")),
            "action_statistics.std.0: Input should be a finite number",
        ),
        (lambda m: m["action_statistics"].pop("max"), "action statistics are not four rows of 3 numbers"),
        (narrow, "act has 192 bytes, expected 128"),
        (lambda m: m.update(action_dim=0), "action statistics are not four rows of 0 numbers"),
        (lambda m: m.pop("episodes"), "it has no episodes"),
        (lambda m: m.update(extra=1), "extra: Unexpected"),
        (lambda m: m.update(shards=3), "shards: Input should be a valid array"),
        (lambda m: m.update(episodes=[]), "episodes: List should have at least 1 item"),
        (lambda m: m["shards"][0].update(file="../shard-000000.tar"), "shards.0.file: String should match pattern"),
        (lambda m: m["shards"][0].update(file="/dev/zero"), "shards.0.file: String should match pattern"),
        (lambda m: m["shards"][0].update(file="other.tar"), "other.tar: cannot be read"),
        (lambda m: m["shards"][0].update(bytes=512), "the manifest says 512"),
        (lambda m: m["shards"][0].update(samples=7), "chunks are not as many"),
        (lambda m: m["shards"][0].update(samples=6.0), "samples: Input should be a valid integer"),
        (lambda m: m["episodes"][0].update(length=21), "the chunk says it is"),
        (lambda m: m["episodes"][0].update(length=-1), "episodes.0.length: Input should be greater than 0"),
        (lambda m: m["episodes"][0].update(length="20"), "episodes.0.length: Input should be a valid integer"),
        (lambda m: m["episodes"][1].update(id=0), "has a wrong id"),
        (lambda m: m["episodes"][1].update(shard=1), "does not follow"),
        (lambda m: m["episodes"][1].update(first_sample=1), "does not follow"),
        (lambda m: m["episodes"][1].update(split="test"), "episodes.1.split: String should match pattern"),
        (lambda m: m["episodes"].reverse(), "has a wrong id"),
    ],
)
def test_an_edited_manifest(shards, change, words):
    edit(shards, change)
    assert_refused(shards, words)


def test_edited_statistics(shards):
    edit(shards, lambda m: m["action_statistics"]["mean"].__setitem__(0, 0.5))
    with pytest.raises(UserError, match="action statistics are not those of the actions"):
        inspect(shards, deep=True)


def test_codecs_cannot_be_exchanged(shards):
    edit(shards, lambda m: m.update(codec="png" if m["codec"] == "raw" else "raw", lossy=False))
    assert_refused(shards, "missing or misnamed")
