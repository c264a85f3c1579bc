"""The interpreter suite in a process of its own: triton decides as it decorates a kernel whether to interpret it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter suite")
def test_interpreted_kernels_equal_their_references():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / "parity")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
    )
    assert run.returncode == 0, run.stdout[-8000:]
    assert " passed" in run.stdout and "needs a GPU" not in run.stdout
