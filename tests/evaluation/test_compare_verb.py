"""`aime-fast compare`: runs on the same held-out windows."""

import json
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from aime_fast.commands.compare import _common_data, _common_reading
from aime_fast.commands.main import main
from aime_fast.errors import UserError
from aime_fast.evaluation.comparison import Comparison
from aime_fast.evaluation.kept import Figure, figures_of, read_result

WINDOWS = ["--context", "2", "--horizon", "4", "--stride", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Shards with three held-out episodes of 12 frames, two runs of one step on them, and a copy of the first."""
    folder, draw = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    with h5py.File(folder / "noise.h5", "w") as file:
        file["observations"] = draw.integers(0, 256, (60, 64, 64, 3), np.uint8)
        file["actions"] = draw.standard_normal((60, 2)).astype(np.float32)
        file["rewards"] = np.zeros(60, np.float32)
        file["episode_ends"] = np.arange(12, 61, 12)
    assert main(["pack", str(folder / "noise.h5"), "--out", str(folder / "data"), "--val-episodes", "3"]) == 0
    sizes = ["--loader.batch-size", "1", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "1"]
    train = ["train", "--preset", "debug", *sizes, "--data", str(folder / "data"), "--steps", "1"]
    for seed in ("0", "1"):
        assert main([*train, "--seed", seed, "--out", str(folder / seed)]) == 0
    shutil.copytree(folder / "0", folder / "copy")
    return folder


def test_runs_stand_side_by_side(place, capsys, tmp_path):
    runs = [str(place / name) for name in ("0", "copy", "1")]
    assert main(["compare", *runs, *WINDOWS, "--json", str(tmp_path / "found.json")]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"data: {place / 'data'}, on which the runs were trained",
        *(f"{name}: evaluating" for name in runs),
    ]
    assert "6 held-out windows of 3 episodes" in out
    assert "SSIM, mean of the futures" in out and "LPIPS" not in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["runs"]) == runs and list(found["differences"]) == runs[1:]
    assert all(row["mean"] == row["low"] == row["high"] == 0 for row in found["differences"][runs[1]])
    first, other = (figures_of(found["runs"][name]) for name in (runs[0], runs[2]))
    for row in found["differences"][runs[2]]:
        figure = Figure(row["metric"], row["prediction"], row["ahead"])
        assert row["mean"] == pytest.approx(other[figure].mean - first[figure].mean, abs=1e-9)
    assert any(row["mean"] != 0 for row in found["differences"][runs[2]])
    assert not (place / "0" / "evaluation.json").exists(), "that is the last answer of `evaluate`"


def test_what_evaluate_kept_is_used_for_the_same_question_alone(place, tmp_path, capsys):
    for name in ("0", "1"):
        shutil.copytree(place / name, tmp_path / name)
    runs = [str(tmp_path / name) for name in ("0", "1")]
    assert main(["evaluate", runs[0], *WINDOWS]) == 0
    kept = read_result(tmp_path / "0" / "evaluation.json")
    assert kept["facts"]["horizon"] == 4 and len(kept["psnr"]["mean of the futures"]) == 4
    for windows, expected in ((WINDOWS, runs[1:]), ([*WINDOWS[:3], "3", *WINDOWS[4:]], runs)):
        capsys.readouterr()
        assert main(["compare", *runs, *windows]) == 0
        assert capsys.readouterr().err.splitlines()[1:] == [f"{name}: evaluating" for name in expected]
    before = (tmp_path / "0" / "evaluation.json").read_bytes()
    assert main(["evaluate", runs[0], *WINDOWS, "--data", str(place / "noise.h5")]) == 0
    assert "not kept as" in capsys.readouterr().err
    assert (tmp_path / "0" / "evaluation.json").read_bytes() == before
    (tmp_path / "0" / "evaluation.json").write_text("{")
    assert main(["compare", *runs, *WINDOWS]) == 0
    assert f"{runs[0]}: evaluating" in capsys.readouterr().err


def test_runs_on_different_data_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * len(name) * (1 + (name == "b")))
    paths = {name: str(tmp_path / name) for name in ("a", "b")}
    opened = {
        name: SimpleNamespace(data_path=lambda asked, path=path: path if asked is None else asked)
        for name, path in paths.items()
    }
    with pytest.raises(UserError) as refused:
        _common_data(opened, None)
    assert str(refused.value) == (
        f"a and b were trained on different data, {paths['a']} and {paths['b']}; judge all on one with --data"
    )
    assert _common_data(opened, paths["a"]) == paths["a"]


def test_runs_that_read_actions_differently_are_refused():
    opened = {
        name: SimpleNamespace(reading_of_actions=lambda path, asked, own=own: asked or own)
        for name, own in {"a": "led", "b": None}.items()
    }
    with pytest.raises(UserError, match=r"read the actions of x.h5 differently \(a led, b by content\); .* --actions"):
        _common_reading(opened, "x.h5", None)
    assert _common_reading(opened, "x.h5", "follows") == "follows"


@pytest.mark.parametrize("runs", [["a"], ["a", "a"]])
def test_it_takes_two_runs(capsys, runs):
    assert main(["compare", *runs]) == 2
    assert capsys.readouterr().err == "error: name at least two different runs to compare\n"


def result(levels, network="x"):
    """A result of 8 episodes; the reconstruction's PSNR of each is `levels`."""
    estimate = {"mean": float(np.mean(levels)), "low": None, "high": None, "sums": list(levels), "counts": [1.0] * 8}
    facts = {"windows": 8, "episodes": 8, "data": "made", "context": 5, "horizon": 1, "lpips weights": network}
    psnr = {name: [estimate] for name in ("mean of the futures", "last frame copied", "mean training frame")}
    return {"facts": facts, "reconstruction": {"psnr": estimate, "lpips": estimate}, "psnr": psnr, "lpips": {}}


def test_clear_differences_are_marked():
    hard = np.linspace(20, 40, 8)
    better = hard + 0.5 + 0.1 * np.cos(np.arange(8))
    mixed = hard + np.tile([1.0, -1.0], 4)
    shown = str(Comparison({"base": result(hard), "better": result(better), "mixed": result(mixed)}))
    psnr = shown.split("KL of z")[0].split("LPIPS")[0]
    lines = {line.split("  ")[0]: line for line in psnr.splitlines() if " - base" in line}
    assert "0.5" in lines["better - base"] and "*" in lines["better - base"]
    assert "0.00 ±" in lines["mixed - base"] and "*" not in lines["mixed - base"]


def test_lpips_of_two_networks_is_not_compared():
    pair = [Comparison({"a": result(np.ones(8)), "b": result(np.ones(8), network)}) for network in ("x", "y")]
    assert [Figure("lpips", "", 0) in found.differences()["b"] for found in pair] == [True, False]
