"""The picture grids: size, the frames pixel for pixel, the slots' colours where the maps say, whole files only."""

import numpy as np
import pytest
import torch
from made_runs import made_snapshot
from PIL import Image

from aime_fast.reporting.figures import (
    GAP,
    LABELS,
    PAD,
    SLOT_COLOURS,
    ZOOM,
    overlay,
    pixels,
    save_reconstruction_grid,
)
from aime_fast.reporting.snapshot import COLUMNS, spread

TOP = PAD + 50


def tile(picture, row, column, size):
    """The enlarged frame in a row and column, brought back to its own size; it must be enlarged without smoothing."""
    height, width = size[0] * ZOOM, size[1] * ZOOM
    y, x = TOP + row * (height + GAP), PAD + LABELS + column * (width + GAP)
    shown = picture[y : y + height, x : x + width]
    small = shown[::ZOOM, ::ZOOM]
    assert (small.repeat(ZOOM, 0).repeat(ZOOM, 1) == shown).all()
    return small


def read(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(("count", "size"), [(1, (16, 16)), (5, (16, 24)), (16, (32, 32))])
def test_every_row_shows_its_frames(tmp_path, count, size):
    seen = made_snapshot(frames=count, size=size, context=count // 2)
    save_reconstruction_grid(tmp_path / "deep" / "a.png", seen, "a title")
    black = np.zeros((count // 2, *size, 3), np.uint8)
    predicted = np.concatenate([black, seen.imagined])
    views = [seen.frames, seen.reconstructions, seen.token_reconstructions, predicted]
    picture = read(tmp_path / "deep" / "a.png")
    columns = min(count, COLUMNS)
    width = 2 * PAD + LABELS + columns * (size[1] * ZOOM + GAP) - GAP
    assert picture.shape == (TOP + PAD + 6 * (size[0] * ZOOM + GAP) - GAP, width, 3)
    for row, view in enumerate(views):
        for column, frame in enumerate(spread(count)):
            assert (tile(picture, row, column, size) == view[frame]).all()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_levels_survive_and_what_lies_outside_is_clipped():
    levels = torch.arange(256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert (pixels(levels / 127.5 - 1.0) == levels[0].movedim(0, -1).numpy()).all()
    assert pixels(torch.tensor([-7.0, 7.0, 0.0]).reshape(1, 3, 1, 1)).ravel().tolist() == [0, 255, 128]


def test_frames_are_spread_from_first_to_last():
    assert spread(1) == [0]
    assert spread(3) == [0, 1, 2]
    for count in (8, 9, 16, 100):
        shown = spread(count)
        assert len(shown) == COLUMNS
        assert (shown[0], shown[-1]) == (0, count - 1)
        assert shown == sorted(set(shown))


@pytest.mark.parametrize("slots", [1, 3, 5, 9])
def test_a_cell_takes_the_colour_of_the_slot_that_looks_at_it(slots):
    maps = torch.zeros(2, slots, 4, 4)
    for slot in range(slots):
        maps[:, slot, slot // 4, slot % 4] = 1.0
    grey = np.full((2, 16, 16, 3), 128, np.uint8)
    tinted = overlay(grey, maps).astype(int)
    for slot in range(slots):
        y, x = 4 * (slot // 4), 4 * (slot % 4)
        cell = tinted[:, y : y + 4, x : x + 4].reshape(-1, 3)
        assert (cell == cell[0]).all()  # sharp edges
        expected = 0.4 * 128 + 0.6 * np.array(SLOT_COLOURS[slot % len(SLOT_COLOURS)])
        assert np.abs(cell[0] - expected).max() <= 1
    assert (tinted[:, 12:] == 128).all()  # nobody looks there


def test_the_overlay_does_not_depend_on_the_scale_of_the_maps():
    maps, shown = torch.rand(2, 3, 4, 4) + 0.1, np.zeros((2, 16, 16, 3), np.uint8)
    scaled = maps * torch.tensor([1.0, 1e-3, 64.0]).reshape(1, 3, 1, 1)
    assert np.abs(overlay(shown, maps).astype(int) - overlay(shown, scaled)).max() <= 1
    assert (overlay(shown, torch.zeros_like(maps)) == shown).all()


def test_the_attention_row_names_its_colours(tmp_path):
    path = tmp_path / "a.png"
    save_reconstruction_grid(path, made_snapshot(frames=2, slots=5, size=(64, 64), grid=8), "")
    labels = read(path)[:, : PAD + LABELS].reshape(-1, 3)
    for colour in SLOT_COLOURS[:5]:
        assert (labels == colour).all(-1).sum() > 50


def test_a_failure_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_reconstruction_grid(path, made_snapshot(), "")
    before = path.read_bytes()

    def full_disk(self, target, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_reconstruction_grid(path, made_snapshot(), "")
    assert path.read_bytes() == before
