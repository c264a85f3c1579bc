import numpy as np
import pytest
from made_recordings import LENGTHS
from PIL import Image

from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.errors import UserError
from aime_fast.reporting.figures import GAP, LABELS, PAD, ZOOM


def test_the_table_says_what_is_in_there(recording, tmp_path, data):
    out = pack(recording, tmp_path / "out", chunks_per_shard=4, seed=7)
    table = inspect(out, deep=True)
    assert "reacher_easy" in table
    assert "codec raw, split seed 7" in table
    assert f"deep check     {sum(LENGTHS)} frames read, all whole" in table
    plain = inspect(recording, deep=True)
    assert "4 episodes, 94 frames, 5 to 40 in an episode" in plain
    mean = data["actions"][: sum(LENGTHS[:4])].astype(float).mean(0)
    row = next(line for line in plain.splitlines() if line.split()[0] == "2")
    assert float(row.split()[1]) == pytest.approx(mean[2], abs=1e-4)
    returns = [part.sum() for part in np.split(data["rewards"].astype(float), np.cumsum(LENGTHS)[:-1])]
    assert f"rewards        {min(returns):.4g} to {max(returns):.4g}, mean {np.mean(returns):.4g}" in plain
    assert "1024 frames" in inspect()
    assert "collected" not in plain


def test_the_contact_sheet_shows_frames_of_every_episode(recording, tmp_path, data):
    sheet = tmp_path / "sheet.png"
    inspect(recording, contact_sheet=sheet)
    picture = np.array(Image.open(sheet))
    left, top, pitch = PAD + LABELS, PAD + 50, 64 * ZOOM + GAP
    assert picture.shape == (top + pitch * len(LENGTHS) - GAP + PAD, left + pitch * 12 - GAP + PAD, 3)
    first = np.cumsum([0, *LENGTHS])
    for episode, length in enumerate(LENGTHS):
        for column, frame in ((0, 0), (11, length - 1)):
            x, y = left + pitch * column, top + pitch * episode
            tile = picture[y : y + 64 * ZOOM : ZOOM, x : x + 64 * ZOOM : ZOOM]
            np.testing.assert_array_equal(tile, data["observations"][first[episode] + frame])
    with pytest.raises(UserError, match="exists already"):
        inspect(recording, contact_sheet=sheet)
    with pytest.raises(UserError, match="cannot be written"):
        inspect(recording, contact_sheet=recording / "sheet.png")


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json here"):
        inspect(tmp_path)
