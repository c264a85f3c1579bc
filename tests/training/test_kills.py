"""SIGKILL at random moments, at a size for every day; `benchmarks/recovery.py --kills 50` is the whole measurement."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from recording import write_recording

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long


def test_killed_runs_end_bit_identical(tmp_path):
    data = write_recording(tmp_path / "recording.pt")
    sizes = ["--loader.batch-size", "2", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "24"]
    script = [sys.executable, str(ROOT / "benchmarks" / "recovery.py"), "--kills", "3", "--steps", "9", "--every", "3"]
    done = subprocess.run(
        [*script, "--data", data, *sizes],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| kills | 3: " in done.stdout
