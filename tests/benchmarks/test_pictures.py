"""The README's pictures of predictions, drawn of a run of one step."""

import pytest
from one_step import train_one_step, write_noise
from PIL import Image

from aime_fast.commands.main import main
from aime_fast.errors import UserError
from benchmarks.horizon import pictures


def test_both_are_drawn_of_a_judged_run(tmp_path):
    assert main(["pack", write_noise(tmp_path / "noise.h5"), "--val-episodes", "2", "--out", f"{tmp_path}/data"]) == 0
    run = train_one_step(tmp_path / "data", tmp_path / "run")
    with pytest.raises(UserError, match=f"{run} has not been judged; run `aime-fast evaluate {run}` first"):
        pictures.main(str(tmp_path), run)
    assert main(["evaluate", run]) == 0
    pictures.main(str(tmp_path), run)
    with Image.open(tmp_path / "horizon.png") as curves, Image.open(tmp_path / "imagined.png") as frames:
        assert curves.width == frames.width == 2100
        assert frames.height > 3 * frames.width / 12, "three rows of nine frames"


def test_one_held_out_episode_has_no_other_actions(tmp_path):
    run = train_one_step(write_noise(tmp_path / "noise.h5"), tmp_path / "run")
    assert main(["evaluate", run]) == 0
    with pytest.raises(UserError, match="two held-out episodes of 20 frames or more are needed"):
        pictures.main(str(tmp_path), run)
