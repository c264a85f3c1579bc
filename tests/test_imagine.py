"""`aime-fast imagine`: the frames asked for, in the file asked for, or one line that says what is wrong."""

import re

import h5py
import numpy as np
import pytest
from one_step import train_one_step, write_noise
from PIL import Image
from reading_figures import svg_pictures, svg_texts

from aime_fast.commands.main import main

FIRST = 40
"""Where the held-out episode of 20 frames begins."""


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("recording") / "noise.h5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recording):
    return train_one_step(recording, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def imagine(trained, tmp_path, monkeypatch, capsys):
    """Runs the verb in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        return (main(["imagine", trained, *arguments]), *capsys.readouterr())

    return call


def test_the_chosen_frames_are_drawn(imagine, recording, tmp_path):
    chosen = ["--context", "3", "--horizon", "6", "--start", "7", "--episode", "0", "--frames", "1,2,3,8"]
    code, out, err = imagine("--out", "a.svg", *chosen)
    assert (code, out, err) == (0, "wrote a.svg\n", f"data: {recording}, on which the run was trained\n")
    with h5py.File(recording) as file:
        truth = file["observations"][FIRST + 7 : FIRST + 16]
    pictures = [picture[0] for picture in svg_pictures(tmp_path / "a.svg")]
    for picture, frame in zip(pictures, [1, 2, 3, 8], strict=False):
        np.testing.assert_array_equal(picture, truth[frame])
    texts = [text for text, _, _ in svg_texts(tmp_path / "a.svg")]
    assert "recording, held-out episode 0, frames 7 to 15" in texts
    # The scores are those of the pictures below the truth, up to rounding to 256 levels.
    for made, frame in zip(pictures[4:12:2], [1, 2, 3, 8], strict=True):
        decibels = -10 * np.log10((((made - truth[frame].astype(float)) / 255) ** 2).mean())
        assert any(abs(float(text[:-3]) - decibels) < 0.06 for text in texts if text.endswith(" dB"))


def test_the_seed_chooses_the_futures(imagine, tmp_path):
    sizes = ["--context", "2", "--horizon", "3", "--samples", "2"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert imagine("--out", f"{name}.svg", "--seed", seed, *sizes)[0] == 0
    first, again, other = ((tmp_path / f"{name}.svg").read_bytes() for name in "abc")
    assert first == again != other
    texts = [text for text, _, _ in svg_texts(tmp_path / "a.svg")]
    assert "future 2" in texts and texts.count("filtered") == 1


def test_every_kind_of_file_is_really_one(imagine, tmp_path):
    kinds = {"pdf": b"%PDF-", "svg": b"<?xml", "PNG": b"\x89PNG", "gif": b"GIF89a", "mp4": b"ftyp"}
    for suffix, magic in kinds.items():
        if suffix == "mp4":
            pytest.importorskip("av", reason="av is not installed")
        assert imagine("--out", f"a.{suffix}", "--context", "2", "--horizon", "3")[0] == 0
        assert magic in (tmp_path / f"a.{suffix}").read_bytes()[:12]
    assert len(list(tmp_path.iterdir())) == len(kinds)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 5


def test_width_and_title_are_taken(imagine, tmp_path):
    assert imagine("--out", "a.svg", "--width", "4.5", "--title", "my figure", "--frames", "4")[0] == 0
    text = (tmp_path / "a.svg").read_text()
    assert re.search(r'width="324pt"', text) and ">my figure<" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "a.jpeg"], "--out a.jpeg: did you mean a.png? name a new .pdf, .svg, .png, .gif or .mp4 file"),
        (["--out", "a"], "--out a: name a new .pdf"),
        (["--out", "no/a.pdf"], "its folder does not exist"),
        (["--frames", "1"], "--frames: must be an integer from 2 to"),
        (["--frames", "some"], "--frames: must be a number of frames or a list such as 0,4,5,9, not 'some'"),
        (
            ["--frames", "0,1"],
            "--frames 0,1: name at least one frame that is seen and one that is imagined; 0 to 4",
        ),
        (["--frames", "0,20"], "5 to 19 imagined (--context, --horizon)"),
        (["--frames", "9,19"], "--frames 9,19: name at least one"),
        (["--width", "0"], "--width: must be inches from 1 to 40, not '0'"),
        (["--width", "nan"], "--width: must be inches"),
        (["--width", "2", "--frames", "20"], "20 frames do not fit into 2 inches"),
        (["--samples", "0"], "--samples: must be an integer from 1 to 16, not '0'"),
        (["--samples", "17"], "--samples: must be an integer from 1 to 16, not '17'"),
        (["--seed", "-1"], "--seed: must be an integer from 0 to"),
        (["--seed", str(2**63)], "--seed: must be"),
        (["--start", "x"], "--start: must be an integer from 0 to"),
        (
            ["--start", "1"],
            "need 21 frames; the longest held-out episode has 20; lower --context or --horizon, or",
        ),
        (["--episode", "0", "--horizon", "16"], "held-out episode 0 has 20; lower --context or --horizon"),
        (["--episode", "1"], "--episode 1: the held-out episodes have the numbers 0 to 0"),
        (["--horizon", "0"], "--horizon: must be an integer of at least 1, not '0'"),
        (["--fps", "5"], "--fps is for .gif, .mp4, and --out is a.pdf; leave --fps out"),
        (["--out", "a.gif", "--width", "3"], "--width is for .pdf, .svg, .png, and --out is a.gif; leave --width out"),
        (["--out", "a.gif", "--fps", "0"], "--fps: must be an integer from 1 to 50, not '0'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(imagine, tmp_path, arguments, words):
    code, out, err = imagine(*([] if "--out" in arguments else ["--out", "a.pdf"]), *arguments)
    mistakes = [line for line in err.splitlines() if not line.startswith("data: ")]
    assert (code, out, len(mistakes)) == (2, "", 1) and mistakes[0].startswith("error: ")
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_never_replaced(imagine, tmp_path):
    (tmp_path / "a.png").write_text("mine")
    code, _, err = imagine("--out", "a.png")
    assert (code, err.count("\n")) == (2, 1) and "--out a.png exists; name a new .pdf, .svg, .png, .gif or .mp4" in err
    assert (tmp_path / "a.png").read_text() == "mine"


def test_a_full_disk_is_one_line(imagine, monkeypatch):
    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    code, out, err = imagine("--out", "a.pdf")
    assert (code, out) == (2, "") and "cannot write --out a.pdf (No space left on device); name another file" in err
