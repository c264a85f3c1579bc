"""`python aime_fast/train.py` from a bare checkout: exit codes, one line for a mistake, no module in the way."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from recording import write_recording

ROOT = Path(__file__).resolve().parents[2]


def names_in(folder):
    return os.listdir(folder) if os.path.isdir(folder) else []


def train(tmp_path, *arguments):
    """Run the script away from the checkout, with every folder of modules but the project's: it finds its own."""
    packages = [path for path in sys.path if not {"aime_fast", "aime_kernels"} & set(names_in(path))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(packages), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", str(ROOT / "aime_fast" / "train.py"), *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)


def test_it_trains(tmp_path):
    data = write_recording(tmp_path / "recording.pt")
    sizes = ["--loader.batch-size", "2", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "6"]
    done = train(tmp_path, "--preset", "debug", "--data", data, *sizes, "--steps", "2", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "validation at step 2" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000002"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--preset", "debug", "--data", "/nowhere"], "/nowhere"), (["--speed", "9"], "speed")],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    done = train(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def launched(processes, tmp_path, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "deepspeed.launcher.runner", "--num_gpus", str(processes), "--master_port", str(port)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(ROOT / "aime_fast" / "train.py"), *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_mistake_under_the_launcher(tmp_path):
    """Each process says the same line, and the launcher ends with their exit code."""
    done = launched(2, tmp_path, "--ds_config", "zero2", "--preset", "debug", "--data", "/nowhere")
    assert done.returncode == 2
    assert set(done.stderr.splitlines()) == {"error: /nowhere: no such file or folder; check the path"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(tmp_path):
    """Twelve steps under ZeRO-2, and again from a copy that has lost everything after step 6."""
    data = write_recording(tmp_path / "recording.pt")
    sizes = ["--loader.batch-size", "2", "--loader.sequence-length", "4", "--checkpoint-every", "6"]
    options = ["--ds_config", "zero2", "--preset", "debug", "--data", data, *sizes, "--keep-checkpoints", "9"]
    done = launched(2, tmp_path, *options, "--steps", "12", "--out", "whole")
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for path in (tmp_path / "parts" / "checkpoints").glob("step-*"):
        if path.name > "step-00000006":
            shutil.rmtree(path)
    done = launched(2, tmp_path, *options, "--steps", "12", "--out", "parts", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    for file in ("weights.safetensors", "rank-0-of-2.safetensors", "rank-1-of-2.safetensors"):
        whole, parts = (tmp_path / run / "checkpoints" / "step-00000012" / file for run in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes(), file


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_two_processes_to_one_and_from_one_to_two_on_the_sample(tmp_path):
    """As a user types it, AdamW and all: both runs say the same of the same held-out windows, wherever they trained."""
    options = ["--preset", "debug", "--ds_config", "zero2", "--checkpoint-every", "3"]
    for out, (first, then) in {"down": (2, 1), "up": (1, 2)}.items():
        done = launched(first, tmp_path, *options, "--steps", "3", "--out", out)
        assert done.returncode == 0, done.stderr
        done = launched(then, tmp_path, *options, "--steps", "6", "--override", "--out", out, "--resume", "auto")
        assert done.returncode == 0, done.stderr
        assert f"parameters on {then} x cpu" in done.stderr
        assert f"resuming from {out}/checkpoints/step-00000003" in done.stderr
    down, up = (
        [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("down", "up")
    )
    assert [row["step"] for row in down if row["split"] == "val"] == [3, 6]
    for one, other in zip(down, up, strict=True):
        for name in ("total_elbo", "perceiver_loss", "total_predictive"):
            # One encoding with the other of two nearly equal codes moves a loss by 1e-4 of itself (docs/recovery.md).
            assert one[name] == pytest.approx(other[name], rel=1e-3)
