import numpy as np
import pytest
from made_recordings import LENGTHS
from PIL import Image

from aime_fast.data.inspect import inspect
from aime_fast.data.pack import pack
from aime_fast.errors import UserError


def test_the_table_says_what_is_in_there(recording, tmp_path, data):
    out = pack(recording, tmp_path / "out", strips_per_shard=4, seed=7)
    table = inspect(out, deep=True)
    assert "reacher_easy" in table
    assert "codec raw, split seed 7" in table
    assert f"deep check     {sum(LENGTHS)} frames read, all whole" in table
    plain = inspect(recording, deep=True)
    assert "4 episodes, 94 frames, 5 to 40 in an episode" in plain
    mean = data["actions"][: sum(LENGTHS[:4])].astype(float).mean(0)
    row = next(line for line in plain.splitlines() if line.split()[0] == "2")
    assert float(row.split()[1]) == pytest.approx(mean[2], abs=1e-4)
    assert "1024 frames" in inspect()


def test_the_contact_sheet_shows_frames_of_every_episode(recording, tmp_path, data):
    sheet = tmp_path / "sheet.png"
    inspect(recording, contact_sheet=sheet)
    picture = np.array(Image.open(sheet))
    assert picture.shape == (64 * len(LENGTHS), 64 * 12, 3)
    first = np.cumsum([0, *LENGTHS])
    for episode, length in enumerate(LENGTHS):
        row = picture[64 * episode : 64 * (episode + 1)]
        np.testing.assert_array_equal(row[:, :64], data["observations"][first[episode]])
        np.testing.assert_array_equal(row[:, -64:], data["observations"][first[episode] + length - 1])
    with pytest.raises(UserError, match="exists already"):
        inspect(recording, contact_sheet=sheet)
    with pytest.raises(UserError, match="cannot be written"):
        inspect(recording, contact_sheet=tmp_path / "no" / "sheet.png")


def test_a_folder_without_shards(tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json here"):
        inspect(tmp_path)
