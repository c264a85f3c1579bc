"""`aime-fast evaluate` with all it can do, on a recording without a simulator's states."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from made_windows import noise_windows

from aime_fast.commands.main import main
from aime_fast.config import preset_config
from aime_fast.doctor import choose_graphics
from aime_fast.doctor.graphics import INSTALL
from aime_fast.evaluation.intervals import Estimate
from aime_fast.evaluation.open_loop import MEAN, OTHER, OTHER_TRUTH, open_loop_psnr
from aime_fast.evaluation.reconstruction import judge_reconstruction
from aime_fast.evaluation.report import AT_REFERENCE
from aime_fast.evaluation.worth.counterparts import COUNTERPARTS
from aime_fast.evaluation.worth.parts import measure
from aime_fast.reporting.page.drawings import _prediction
from aime_fast.reporting.page.run_record import read_run


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Four episodes of 24 frames of drifting stripes, one of them held out."""
    path, draw = tmp_path_factory.mktemp("recording") / "stripes.h5", np.random.default_rng(0)
    rows = (np.arange(64)[:, None] * 4 + 7 * np.arange(96)[:, None, None]) % 256
    with h5py.File(path, "w") as file:
        file["observations"] = np.broadcast_to(rows[..., None], (96, 64, 64, 3)).astype(np.uint8)
        file["actions"] = draw.standard_normal((96, 2)).astype(np.float32)
        file["rewards"] = np.zeros(96, np.float32)
        file["episode_ends"] = np.arange(24, 97, 24)
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recording):
    folder = str(tmp_path_factory.mktemp("runs") / "run")
    sizes = ["--loader.batch-size", "1", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "1"]
    assert main(["train", "--preset", "debug", *sizes, "--data", recording, "--steps", "1", "--out", folder]) == 0
    return folder


class MeanColours(torch.nn.Module):
    """A video network."""

    def forward(self, x: torch.Tensor):
        return x.mean((3, 4)).flatten(1)


def test_everything_is_printed_and_written(capsys, tmp_path, recording, trained):
    capsys.readouterr()
    path = tmp_path / "result.json"
    flags = [trained, "--stride", "2", "--simulator", "--parts"]
    table, video = tmp_path / "result.csv", tmp_path / "video.pt"
    torch.jit.script(MeanColours()).save(video)
    flags += ["--json", str(path), "--csv", str(table), "--fvd-weights", str(video)]
    assert main(["evaluate", *flags]) == 0
    out, err = capsys.readouterr()
    assert "parts: slots: their mean" in err
    assert f"share and probe: left out, {recording} keeps no simulator's states; `aime-fast collect` does\n" in out
    for title in (
        "frames ahead",
        "over moving pixels",
        "ridge on PCA codes",
        "replaced by",
        "predictor of the next",
        "SSIM",
        "FVD",
    ):
        assert title in out
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["facts"]["windows"] == 3 and found["facts"]["episodes"] == 1
    assert [row["name"] for row in found["parts"]["rows"]] == [part.name for part in COUNTERPARTS]
    assert len(found["psnr"]["mean of the futures"]) == 15
    assert found["psnr"]["mean of the futures"][0].keys() == set(Estimate.__dataclass_fields__)
    assert found["share"] == {} and found["probe"] is None
    assert "not measured: LPIPS (--lpips-weights FILE)\n" in out
    assert found["lpips"] == {} and found["ssim"]["mean of the futures"][2]["mean"] is None, "3 is not in the table"
    assert 0 < found["ssim"]["mean of the futures"][4]["mean"] < 1
    lost, own, other = (row[4]["mean"] for row in (found["lost"], found["psnr"][MEAN], found["psnr"][OTHER]))
    assert lost == pytest.approx(own - other, abs=1e-9)
    assert found["frechet"]["fvd"].keys() >= {"one future", "last frame copied", "recorded frames, two halves"}
    assert json.loads(Path(trained, "evaluation.json").read_text()) == found
    drawn = _prediction(read_run(trained))
    assert drawn[MEAN][5] == pytest.approx((own, own, own)), "one episode has no interval"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    values = {(row["metric"], row["prediction"], row["frames_ahead"]): float(row["value"]) for row in rows}
    assert values["psnr", MEAN, "5"] == pytest.approx(own, rel=1e-5)
    assert values["nats", "", "0"] == pytest.approx(found["reconstruction"]["nats"]["mean"], rel=1e-5)
    assert sorted(tmp_path.iterdir()) == [table, path, video]
    assert main(["evaluate", *flags]) == 2, "a result is not overwritten"
    assert "name a new file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Three short episodes of a simulator, the last one held out, and the folder of a run of one step on them."""
    if find_spec("dm_control") is None:
        pytest.skip(INSTALL)
    if choose_graphics()[0] is None:
        pytest.skip("nothing renders here")
    data, run = (str(tmp_path_factory.mktemp("simulated") / name) for name in ("data", "run"))
    choices = ["--env", "reacher_easy", "--episodes", "3", "--length", "30", "--processes", "1"]
    assert main(["collect", *choices, "--out", data]) == 0
    sizes = ["--loader.batch-size", "1", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "1"]
    assert main(["train", "--preset", "debug", *sizes, "--data", data, "--steps", "1", "--out", run]) == 0
    return data, run


def test_collected_data_also_tell_the_share_and_the_probe(capsys, tmp_path, simulated):
    _, run = simulated
    results = []
    for name in ("once", "again"):
        path = tmp_path / f"{name}.json"
        flags = [run, "--stride", "5", "--simulator", "--json", str(path)]
        assert main(["evaluate", *flags]) == 0
        results.append(path.read_text())
    assert results[0] == results[1]
    out, found = capsys.readouterr().out, json.loads(results[0])
    assert "left out" not in out and "differ from the recorded ones" not in out
    assert found["facts"]["windows"] == 3
    possible, share = (found[name][AT_REFERENCE] for name in ("possible", "share"))
    assert len(possible) == len(share) == 15
    assert all(value["mean"] > 0.5 for value in possible[4:]), "other actions move the arm"
    for h, value in enumerate(share):
        own, other = (found["psnr"][name][h]["mean"] for name in (MEAN, OTHER))
        assert value["mean"] == pytest.approx((own - other) / possible[h]["mean"], abs=1e-9)
    assert found["psnr"][OTHER_TRUTH][0]["mean"] > 0
    assert (
        found["frechet"]["state probe"]["one future"]["mean"]
        > found["frechet"]["state probe"]["recorded frames, two halves"]["mean"]
    )
    assert found["probe"]["r2"]["z"]["position"].keys() == {"sin shoulder", "cos shoulder", "wrist"}
    assert found["probe"]["r2"].keys() == {"z", "h", "PCA codes", "PCA codes of two frames"}


@pytest.fixture
def full_float32():
    """Products in float32: TF32, which cuDNN takes by itself, keeps ten bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.gpu
@pytest.mark.usefixtures("full_float32")
def test_a_gpu_finds_what_a_cpu_finds():
    from dataclasses import replace

    from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel

    model = WorldModel.from_config(replace(preset_config("debug").model, action_dim=6, image_size=64)).eval()
    windows = noise_windows(8, stride=8)

    def found(device):
        model.to(device)
        values = {f"parts {name}": x for name, x in measure(model, windows, 5).items()}
        values |= open_loop_psnr(model, windows, 5).psnr
        return values | {"reconstruction": judge_reconstruction(model, windows)["psnr"]}

    there, here = found("cuda"), found("cpu")
    for name, values in here.items():
        torch.testing.assert_close(there[name], values, atol=0.02, rtol=2e-3, msg=name)
