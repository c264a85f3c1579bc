"""The figure of a prediction: its pixels, its scores, its line, its size, in the files that people take."""

import re

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_prediction
from PIL import Image
from reading_figures import pdf_pictures, svg_pictures, svg_texts

from aime_fast.errors import UserError
from aime_fast.reporting.charts.imagined import imagined, spread_over
from aime_fast.reporting.charts.style import DOTS, save

SHOWN = [0, 2, 3, 6]
"""Two frames that were seen and two imagined ones, of 7."""
BEFORE = 2


def expected(seen):
    """The true-colour tiles in the order of drawing."""
    tiles = [seen.truth[frame] for frame in SHOWN]
    for future, made in enumerate(seen.made):
        tiles += [made[frame] for frame in (SHOWN if future == 0 else SHOWN[BEFORE:])]
    return tiles


@pytest.fixture(scope="module")
def seen():
    return made_prediction()


@pytest.fixture(scope="module")
def files(seen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for suffix in ("pdf", "svg", "png"):
        save(imagined(seen, SHOWN, "a title", 5.0), folder / f"a.{suffix}")
    assert len(list(folder.iterdir())) == 3
    return folder


def test_a_pdf_has_the_frames_pixel_for_pixel_and_text_as_text(seen, files):
    for tile, frame in zip(pdf_pictures(files / "a.pdf"), expected(seen), strict=True):
        np.testing.assert_array_equal(tile, frame)
    content = (files / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    assert b"/FontFile2" in content and b"/ToUnicode" in content and b"/Type3" not in content
    box = re.search(rb"/MediaBox \[ 0 0 (\S+) (\S+) ]", content)
    assert float(box[1]) == 5 * 72


def test_an_svg_has_the_frames_pixel_for_pixel_and_the_scores_below_them(seen, files):
    coloured = [picture for picture in svg_pictures(files / "a.svg") if picture[1] is not None]
    texts = svg_texts(files / "a.svg")
    frames = expected(seen)
    true_colour = [p for p in coloured if any(np.array_equal(p[0], frame) for frame in frames)]
    assert len(true_colour) == len(frames)
    made = true_colour[len(SHOWN) :]
    places = [(0, frame) for frame in SHOWN] + [(1, frame) for frame in SHOWN[BEFORE:]]
    for (pixels, scale, left, top), (future, frame) in zip(made, places, strict=True):
        np.testing.assert_array_equal(pixels, seen.made[future, frame])
        middle, bottom = left + scale * pixels.shape[1] / 2, top + scale * pixels.shape[0]
        below = [text for text, x, y in texts if abs(x - middle) < 1 and 0 < y - bottom < 14]
        assert below == [f"{seen.psnr[future, frame]:.1f} dB"]


def test_a_png_has_the_frames_pixel_for_pixel(seen, files):
    picture = np.asarray(Image.open(files / "a.png").convert("RGB"))
    assert picture.shape[1] == 5 * DOTS
    points = [p for p in svg_pictures(files / "a.svg") if p[1] is not None]
    for pixels, scale, left, top in points[: len(SHOWN)]:
        rows, columns = (np.arange(size) + 0.5 for size in pixels.shape[:2])
        y, x = ((edge + scale * at) * DOTS / 72 for edge, at in ((top, rows), (left, columns)))
        np.testing.assert_array_equal(picture[y.astype(int)[:, None], x.astype(int)], pixels)


def test_the_line_parts_what_was_seen_from_what_was_not(seen):
    figure = imagined(seen, SHOWN, "", 5.0)
    edges = [axis.get_position() for axis in figure.axes[: len(SHOWN)]]
    line = next(item for item in figure.artists if item.get_linestyle() == "--")
    x = line.get_xdata()[0]
    assert edges[BEFORE - 1].x1 < x < edges[BEFORE].x0
    places = {text.get_text(): text.get_position()[0] for text in figure.texts}
    assert places["filtered"] < x and places["seen"] < x
    assert all(places[name] > x for name in ("future 1", "future 2", "imagined from actions alone"))


def test_one_future_is_called_imagined_and_the_errors_have_a_common_scale(seen):
    one = made_prediction(futures=1)
    figure = imagined(one, SHOWN)
    assert "imagined" in [text.get_text() for text in figure.texts]
    errors = [axis.images[0] for axis in figure.axes if axis.images and axis.images[0].get_array().ndim == 2]
    truth = np.abs(one.made[0].astype(float) - one.truth).mean(-1) / 255
    worst = truth[SHOWN].max()
    for image, frame in zip(errors, SHOWN, strict=True):
        np.testing.assert_allclose(image.get_array(), truth[frame], rtol=1e-5)
        assert image.get_clim() == (0, pytest.approx(worst, rel=1e-5))


@pytest.mark.parametrize("size", [(16, 16), (7, 20), (64, 64)])
@pytest.mark.parametrize("futures", [1, 5])
@pytest.mark.parametrize("width", [3.0, 12.0])
def test_text_and_tiles_stay_inside_and_apart(size, futures, width):
    figure = imagined(made_prediction(frames=9, futures=futures, size=size, context=1), [0, 1, 8], "x" * 60, width)
    assert figure.get_figwidth() == width
    figure.canvas.draw()
    edge = figure.bbox
    boxes = [text.get_window_extent() for text in figure.texts]
    assert all(b.x0 >= 0 and b.x1 <= edge.x1 and b.y0 >= 0 and b.y1 <= edge.y1 for b in boxes)
    areas = [axis.get_window_extent() for axis in figure.axes]
    every = boxes + areas
    assert not [(a, b) for i, a in enumerate(every) for b in every[:i] if mpl.transforms.Bbox.intersection(a, b)]


def test_frames_that_do_not_fit_are_refused(seen):
    with pytest.raises(UserError, match=r"4 frames do not fit into 2 inches; show fewer with --frames, or raise"):
        imagined(seen, SHOWN, "", 2.0)


def test_the_same_figure_gives_the_same_bytes(seen, files, tmp_path):
    for suffix in ("pdf", "svg", "png"):
        save(imagined(seen, SHOWN, "a title", 5.0), tmp_path / f"a.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes() == (files / f"a.{suffix}").read_bytes()


@given(st.integers(1, 30), st.integers(1, 60), st.integers(2, 40))
def test_frames_are_spread_over_both_sides_of_the_line(context, horizon, columns):
    shown = spread_over(context, horizon, columns)
    assert shown == sorted(set(shown)) and len(shown) == min(columns, context + horizon)
    assert {context - 1, context} <= set(shown) and shown[0] >= 0 and shown[-1] < context + horizon
    assert shown[-1] == context + horizon - 1 or sum(frame >= context for frame in shown) == 1
