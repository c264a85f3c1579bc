"""The video of a prediction: as many frames as the window, their size, their pixels."""

import sys

import numpy as np
import pytest
from made_runs import made_prediction
from PIL import Image

from aime_fast.errors import UserError
from aime_fast.reporting.prediction import Prediction
from aime_fast.reporting.video import GAP, HEAD, TILE, check_encoder, pictures, save_video


def smooth(frames=6, size=32):
    """Slow gradients, which a video keeps; the same picture in every frame."""
    ramp = np.linspace(40, 200, size).astype(np.uint8)
    picture = np.stack([np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 90)], -1)
    truth = np.broadcast_to(picture.astype(np.uint8), (frames, size, size, 3)).copy()
    return Prediction(truth, truth[None], np.full((1, frames), 30.0), 2)


def test_a_picture_shows_truth_prediction_and_error_enlarged():
    seen = made_prediction(frames=4, futures=2, size=(24, 32), context=1)
    zoom = TILE // 24
    for frame, picture in enumerate(pictures(seen)):
        for future in range(2):
            y = HEAD + future * (TILE + HEAD)
            for column, tile in enumerate((seen.truth[frame], seen.made[future, frame])):
                x = column * (32 * zoom + GAP)
                shown = picture[y : y + TILE, x : x + 32 * zoom]
                np.testing.assert_array_equal(shown, tile.repeat(zoom, 0).repeat(zoom, 1))
    assert frame == 3


@pytest.mark.parametrize("size", [(7, 9), (64, 64), (200, 201)])
def test_sides_are_even(size):
    picture = next(pictures(made_prediction(frames=2, futures=1, size=size, context=1)))
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0


def test_the_words_change_where_seeing_ends():
    first, second, third, fourth = (picture[:HEAD] for picture in pictures(smooth(frames=4)))
    assert (first == second).all() and (third == fourth).all() and (second != third).any()


def test_a_gif_has_every_frame_its_size_and_its_speed(tmp_path):
    seen = smooth()
    save_video(pictures(seen), tmp_path / "a.gif", fps=5)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.format == "GIF" and film.n_frames == 6 and film.info["loop"] == 0
        assert film.size == next(pictures(seen)).shape[1::-1]
        for number, picture in enumerate(pictures(seen)):
            film.seek(number)
            assert film.info["duration"] == 200
            off = np.abs(np.asarray(film.convert("RGB")).astype(int) - picture)
            assert off.mean() < 6  # 256 colours
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_an_mp4_has_every_frame_its_size_and_its_speed(tmp_path):
    av = pytest.importorskip("av", reason="av is not installed")
    seen = smooth()
    save_video(pictures(seen), tmp_path / "a.mp4", fps=12)
    with av.open(str(tmp_path / "a.mp4")) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.pix_fmt) == ("h264", 12, "yuv420p")
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
    assert len(frames) == 6
    for frame, picture in zip(frames, pictures(seen), strict=True):
        assert frame.shape == picture.shape
        assert np.abs(frame.astype(int) - picture).mean() < 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_without_av_an_mp4_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"a.mp4 needs av; run pip install 'aime-fast\[av\]', or name a .gif file"):
        check_encoder(tmp_path / "a.mp4")
    check_encoder(tmp_path / "a.gif")


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(self, target, **kwargs):
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_video(pictures(smooth()), tmp_path / "a.gif", fps=5)
    assert list(tmp_path.iterdir()) == []
