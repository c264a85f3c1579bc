"""Figures for trackers: drawn in another process, one at a time, and what fails is said."""

import numpy as np
import pytest
from made_runs import made_snapshot
from PIL import Image

from aime_fast.reporting.charts.__main__ import PICTURES, draw
from aime_fast.reporting.charts.open_loop import open_loop
from aime_fast.reporting.drawing import LAST_SECONDS, Drawing
from aime_fast.reporting.snapshot import NAME


def test_a_process_draws_every_picture_of_the_snapshot_and_names_its_step(tmp_path):
    made_snapshot().save(tmp_path)
    drawing = Drawing(tmp_path)
    assert drawing.finished() is None
    drawing.begin()
    drawing.begin()  # while it draws: left out
    drawn = drawing.finished(LAST_SECONDS)
    assert (drawn.step, set(drawn.pictures)) == (120, set(PICTURES))
    for path in drawn.pictures.values():
        assert path.parent == tmp_path / "figures" / "latest"
        assert np.asarray(Image.open(path).convert("L")).std() > 1
    assert drawing.finished(LAST_SECONDS) is None and drawing.failure is None


def test_what_cannot_be_drawn_is_said(tmp_path):
    (tmp_path / NAME).write_bytes(b"torn")
    drawing = Drawing(tmp_path)
    drawing.begin()
    assert drawing.finished(LAST_SECONDS) is None
    assert "snapshot.npz is damaged" in drawing.failure


def test_one_that_never_ends_is_ended(tmp_path):
    made_snapshot().save(tmp_path)
    drawing = Drawing(tmp_path)
    drawing.begin()
    assert drawing.finished(1e-3) is None
    assert drawing.failure


def test_without_a_snapshot_there_is_nothing(tmp_path):
    assert draw(tmp_path, tmp_path / "out") == {"step": 0, "pictures": {}}


@pytest.mark.parametrize(("frames", "context"), [(6, 2), (30, 5), (6, 5), (5, 5), (1, 1)])
def test_the_open_loop_picture_gives_the_psnr_of_each_frame(frames, context):
    seen = made_snapshot(frames=frames, context=context)
    figure = open_loop(seen)
    if frames == context:
        assert "too short" in figure.axes[0].texts[0].get_text()
        return
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == min(frames - context, 8)
    truth, predicted = seen.frames[context].astype(float), seen.imagined[0].astype(float)
    psnr = 10 * np.log10(255**2 / ((truth - predicted) ** 2).mean())
    assert titles[0] == f"1 ahead\n{psnr:.1f} dB"
    assert titles[-1].startswith(f"{frames - context} ahead")
