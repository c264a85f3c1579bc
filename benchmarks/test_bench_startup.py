"""Seconds until the help is on the screen, a new process each time; the target is under one.

Run with `make bench ARGS=benchmarks/test_bench_startup.py`. The first start after an installation is slower by the
writing of byte code; the warm-up round takes that.
"""

import subprocess
import sys
from pathlib import Path

import pytest

BIN, ROOT = Path(sys.executable).parent, Path(__file__).parents[1]
COMMANDS = {
    "aime-fast --help": [BIN / "aime-fast", "--help"],
    "aime-fast train --help": [BIN / "aime-fast", "train", "--help"],
    "python aime_fast/train.py --help": [sys.executable, ROOT / "aime_fast" / "train.py", "--help"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help(benchmark, name):
    done = benchmark.pedantic(
        subprocess.run, (COMMANDS[name],), {"check": True, "capture_output": True}, rounds=10, warmup_rounds=1
    )
    assert done.stdout.startswith(b"usage: aime-fast")
    benchmark.extra_info["target_seconds"] = 1.0
