"""`python aime_fast/train.py` from a bare checkout: exit codes, one line for a mistake, no module in the way."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from recording import write_recording

ROOT = Path(__file__).resolve().parents[2]


def train(tmp_path, *arguments):
    """Run the script away from the checkout, without site's `.pth` files: as if the project were not installed."""
    environment = os.environ | {"PYTHONPATH": sysconfig.get_paths()["purelib"], "OMP_NUM_THREADS": "1"}
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
