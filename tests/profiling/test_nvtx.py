"""NVTX itself hands the phases of real steps to a tool: a small one of C++, where Nsight is not installed."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("nvtx_tool.cpp")
STEPS = 2
MISSING = [
    *(["a C++ compiler"] if shutil.which("g++") is None else []),
    *(["the package nvtx"] if importlib.util.find_spec("nvtx") is None else []),
]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """What `aime-fast profile --marks` opens and closes: kind, thread, name."""
    if MISSING:
        pytest.skip(f"needs {' and '.join(MISSING)}")
    folder = tmp_path_factory.mktemp("nvtx")
    library, log = folder / "tool.so", folder / "log"
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", TOOL, "-o", library], check=True)
    arguments = ["--preset", "debug", "--marks", "--steps", str(STEPS), "--warm-up", "1", "--out", folder / "out"]
    tool = {"NVTX_INJECTION64_PATH": str(library), "NVTX_TOOL_LOG": str(log)}
    command = [sys.executable, "-m", "aime_fast", "profile", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | tool, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [tuple(line.split("\t")) for line in log.read_text().splitlines()]


def test_the_marked_steps_have_all_phases(events):
    kinds = [kind for kind, _, _ in events]
    first, last = kinds.index("start"), kinds.index("end")
    assert events[first][2] == "profiled steps"
    assert kinds.count("start") == kinds.count("end") == 1
    pushed = [name for kind, _, name in events[first:last] if kind == "push"]
    for name in ("wait", "forward", "backward", "backward/elbo", "balance", "step", "averages"):
        assert pushed.count(name) == STEPS, name
    assert pushed.count("checkpoint") == pushed.count("log") == 1
    assert {"data", "backward/perceiver", "backward/predictive"} <= set(pushed)


def test_ranges_close_on_their_thread(events):
    depth, threads = defaultdict(int), defaultdict(set)
    for kind, thread, name in events:
        depth[thread] += {"push": 1, "pop": -1}.get(kind, 0)
        assert depth[thread] >= 0
        threads[name].add(thread)
    assert set(depth.values()) == {0}
    assert threads["data"].isdisjoint(threads["forward"])
