"""`aime-fast profile` records real steps, and says in one line what it cannot do."""

import gzip
import json
import math
from types import SimpleNamespace

import pytest
from PIL import Image

from aime_fast import DMCVBTrainer
from aime_fast.commands.main import main
from aime_fast.commands.profile import peak_of
from aime_fast.profiling.trace import read_trace

PHASES = {
    *("wait", "forward", "backward", "balance", "step", "averages", "elsewhere", "log", "checkpoint"),
    *(f"backward/{task}" for task in ("elbo", "perceiver", "predictive")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "out"
    assert main(["profile", "--preset", "debug", "--steps", "2", "--warm-up", "1", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def profile(folder):
    return json.loads((folder / "profile.json").read_text())


def test_what_it_writes(folder):
    assert {path.name for path in folder.iterdir()} == {
        *("profile.txt", "profile.json", "trace.json.gz", "timeline.png", "run.log")
    }
    with Image.open(folder / "timeline.png") as picture:
        assert picture.width >= 1200 and picture.height >= 500
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_the_table_adds_up(profile):
    """The rows of a step are the whole step; none works longer than it lasts."""
    rows = {row["phase"]: row for row in profile["rows"]}
    assert set(rows) == PHASES
    inside = [row for name, row in rows.items() if name not in ("log", "checkpoint")]
    assert math.isclose(sum(row["host"] for row in inside), profile["recorded_ms"], rel_tol=1e-9)
    assert all(-1e-6 <= row["idle"] <= row["host"] + 1e-6 for row in rows.values())
    assert all(math.isclose(row["device"] + row["idle"], row["host"], abs_tol=1e-3) for row in rows.values())
    assert profile["steps"] == 2
    assert profile["step_ms"] > 0


def test_the_trace_has_the_phases(folder, profile):
    events = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))["traceEvents"]
    names = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    assert names >= {"data", *PHASES} - {"elsewhere"}
    trace = read_trace(folder / "trace.json.gz")
    assert len(trace.steps) == 2
    assert {span.name for span in trace.loading} == {"data"}


def test_the_work_of_a_step(profile):
    """A backward pass needs the products of a forward pass at most twice; each task reaches a part of the model."""
    flops = {row["phase"]: (row["flops"] or 0) * row["device"] for row in profile["rows"]}
    backward = {name: value for name, value in flops.items() if name.startswith("backward/")}
    assert all(0 < value <= 2.05 * flops["forward"] for value in backward.values())
    launches = {row["phase"]: row["launches"] for row in profile["rows"]}
    assert launches["forward"] > 100 and launches["balance"] > 10 and launches["wait"] == 0


def test_the_text_says_what_the_columns_are(folder):
    text = (folder / "profile.txt").read_text()
    assert text.startswith("debug, B=4, T=8")
    assert "No card: `ops ms` is the time of the CPU's operators" in text
    assert "of peak" not in text
    advice = text[text.index("The three largest items") :].splitlines()
    assert [line[:2] for line in advice[1:]] == ["1.", "2.", "3."]


def test_the_settings_of_a_run(tmp_path, monkeypatch):
    import yaml

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"preset": "debug", "loader": {"sequence_length": 3}}))
    monkeypatch.chdir(tmp_path)
    assert main(["profile", str(run), "--steps", "1", "--warm-up", "1", "--batch-size", "2"]) == 0
    found = json.loads((tmp_path / "runs" / "profile-1" / "profile.json").read_text())
    assert found["title"].startswith("debug, B=2, T=3")
    assert list(run.iterdir()) == [run / "config.yaml"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "error: give the folder of a run or --preset debug, small or paper"),
        (["--preset", "smal"], "did you mean small?"),
        (["nowhere"], "error: nowhere has no config.yaml; give the folder of a run, or --preset"),
        (["--preset", "debug", "--device", "cuda"], "error: --device cuda, but there is none here ("),
        (["--preset", "debug", "--under", "ncu"], "error: --under ncu measures kernels of a GPU, but there is none"),
        (["--preset", "debug", "--under", "nsys"], "error: nsys is not installed; install Nsight Systems"),
        (["--preset", "debug", "--steps", "0"], "must be an integer of at least 1, not '0'"),
        (["--preset", "debug", "--out", "."], "error: --out . is not empty; give a new folder"),
        (["--preset", "debug", "--batch-size", "3", "--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "something").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["profile", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "runs" / "profile-1").exists()


@pytest.mark.parametrize(
    "device, precision, title, tflops",
    [
        ("NVIDIA H200", "TF32 products", "NVIDIA H200", 494.7),
        ("NVIDIA H100 80GB HBM3", "bf16 products", "NVIDIA H100 SXM", 989.4),
        ("NVIDIA A100-SXM4-80GB", "float32 products", "NVIDIA A100 SXM 80 GB", 19.5),
        ("NVIDIA A100-SXM4-40GB", "float32 products", "NVIDIA A100 SXM 40 GB", 19.5),
        ("NVIDIA GeForce RTX 3090", "TF32 products", "NVIDIA RTX 3090", 35.6),
        ("NVIDIA L40S", "bf16 products", "NVIDIA L40S", 362),
    ],
)
def test_peaks_of_cards_by_the_name_of_their_driver(device, precision, title, tflops):
    peak = peak_of(device, precision)
    assert peak.card == title
    assert peak.flops == pytest.approx(1e12 * tflops, rel=0.01)


@pytest.mark.parametrize(
    "device", ["NVIDIA GH200 480GB", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "Tesla T4"]
)
def test_a_card_with_other_peaks_has_none(device):
    assert peak_of(device, "TF32 products") is None


def test_a_profile_that_is_interrupted_has_no_table(tmp_path, monkeypatch, capsys):
    """Training itself ends well after Ctrl-C, with a checkpoint."""
    monkeypatch.setattr(DMCVBTrainer, "fit", lambda self, until: SimpleNamespace(signal=2))
    assert main(["profile", "--preset", "debug", "--out", str(tmp_path / "out")]) == 130
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "interrupted\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.log"]
