import io
import json
import shutil

import numpy as np
import pytest
from made_recordings import columns, write_hdf5
from PIL import Image
from test_hard_inputs import forge, member

from aime_fast.data.files import SAMPLE
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.shards.reader import open_shards
from aime_fast.data.store import open_store
from aime_fast.errors import UserError


def noise(frames):
    return np.random.default_rng(0).integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)


def psnr(found, truth):
    """Of each frame, in dB."""
    return 10 * np.log10(255**2 / np.square(found.astype(float) - truth).mean((1, 2, 3)))


@pytest.fixture(scope="module")
def sample_frames():
    windows = np.stack([np.arange(10), np.zeros(10, np.int64)], 1)
    return open_store(None, "all").gather(windows, 128).observations.numpy()


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("frames", [1, 3, 7, 16])
def test_a_chunk_of_any_length_is_decoded(name, frames, sample_frames):
    codec = CODECS[name]
    for chunk in (noise(frames), sample_frames[0, :frames]):
        data = codec.encode(chunk)
        codec.check(data, chunk.shape)
        found = codec.decode(data, chunk.shape)
        assert found.shape == chunk.shape and found.dtype == np.uint8
        assert codec.lossy or (found == chunk).all()


@pytest.mark.parametrize("name", sorted(CODECS))
def test_codecs_refuse_what_is_not_the_chunk(name):
    codec = CODECS[name]
    data = codec.encode(noise(3))
    for wrong, frames in ((data, 2), (data[: len(data) // 2], 3), (b"", 3), (b"x" * 50, 3)):
        with pytest.raises(ValueError):
            codec.decode(wrong, (frames, 64, 64, 3))
    for wrong, frames in ((data, 2), (b"", 3), (b"x" * 50, 3)):
        with pytest.raises(ValueError):
            codec.check(wrong, (frames, 64, 64, 3))


def test_jpg_keeps_the_sample_above_40_db(sample_frames):
    codec = CODECS["jpg"]
    chunks = sample_frames.reshape(-1, 16, 64, 64, 3)
    stored = [codec.encode(chunk) for chunk in chunks]
    values = np.concatenate(
        [psnr(codec.decode(data, chunk.shape), chunk) for data, chunk in zip(stored, chunks, strict=True)]
    )
    assert values.min() >= 40
    assert sum(map(len, stored)) < 0.2 * sample_frames.nbytes


def jpeg(chunk, **options):
    buffer = io.BytesIO()
    Image.fromarray(chunk.reshape(-1, 64, 3)).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2"])
def test_subsampled_colour_is_refused(tmp_path, subsampling, sample_frames):
    chunk = sample_frames[0, :16]
    data = jpeg(chunk, subsampling=subsampling)
    for read in (CODECS["jpg"].check, CODECS["jpg"].decode):
        with pytest.raises(ValueError, match="only 4:4:4"):
            read(data, chunk.shape)
    assert psnr(np.array(Image.open(io.BytesIO(data))).reshape(chunk.shape), chunk).max() < 40
    # The same in a shard that another program wrote, with a checksum that fits.
    folder = pack(write_hdf5(tmp_path / "r.h5", columns([20, 18])), tmp_path / "shards", codec="jpg")
    forge(folder, "obs.jpg", data)
    with pytest.raises(UserError, match=r"episode 0, frames 0 to 15: .*only 4:4:4"):
        inspect(folder, deep=True)


def test_grey_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(noise(2)[..., 0].reshape(-1, 64)).save(buffer, "JPEG")
    with pytest.raises(ValueError, match="a L picture"):
        CODECS["jpg"].check(buffer.getvalue(), (2, 64, 64, 3))


def test_a_bit_that_every_decoder_lets_pass_is_refused(tmp_path):
    """A flip inside the entropy-coded data yields other pixels and no complaint; only the checksum knows."""
    folder = pack(SAMPLE, tmp_path / "shards", codec="jpg")
    manifest, (reader,) = open_shards(folder)
    chunk = reader.chunk(manifest.episodes[0], 0)
    data = bytearray(member(folder, "obs.jpg"))
    whole = CODECS["jpg"].decode(bytes(data), (16, 64, 64, 3))
    silent = 0
    for place in range(len(data) // 2, len(data) // 2 + 40):
        damaged = data.copy()
        damaged[place] ^= 4
        try:
            silent += (CODECS["jpg"].decode(bytes(damaged), (16, 64, 64, 3)) != whole).any()
        except ValueError:
            continue
    assert silent > 10
    path = folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[chunk.offset + len(data) // 2] ^= 4
    path.write_bytes(content)
    for read in (lambda: open_store(folder, "train"), lambda: inspect(folder, deep=True)):
        with pytest.raises(UserError, match=r"frames 0 to 15: the pixels are damaged \(wrong crc32\)"):
            read()


def test_a_lossy_codec_is_said(tmp_path):
    lossy = pack(SAMPLE, tmp_path / "jpg", codec="jpg")
    manifest = json.loads((lossy / "manifest.json").read_text())
    assert manifest["lossy"] is True and "quality 95, 4:4:4" in manifest["encoder"] and manifest["notes"] == []
    assert "codec jpg (lossy: Pillow" in inspect(lossy)
    assert "lossy" not in inspect(SAMPLE)
    # What has been lost once stays said when the frames are packed again without loss.
    again = pack(lossy, tmp_path / "raw", codec="raw")
    assert json.loads((again / "manifest.json").read_text())["notes"] == ["frames were stored as jpg, which is lossy"]
    assert "note           frames were stored as jpg, which is lossy" in inspect(again)
    shutil.rmtree(lossy)
    lossy = pack(again, tmp_path / "jpg", codec="jpg")
    assert inspect(lossy).count("frames were stored as jpg") == 1
