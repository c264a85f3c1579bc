"""Two processes against one on two cores: frames a second in all, and the share of a step that goes to collectives.

Run with `make bench ARGS="-s benchmarks/test_bench_ranks.py"`, which prints the table; docs/recovery.md has it as
measured. Both have the same global batch, so two processes do half a batch each, on one thread each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
PRESET, STEPS = "small", 5
LAYOUTS = [(1, 1, "plain"), (1, 2, "plain"), (2, 1, "zero0"), (2, 1, "zero2")]


@pytest.fixture(scope="module")
def rows():
    """One row a layout, printed when all are there."""
    found = []
    yield found
    print("\n\n| processes x threads | engine | frames/s | seconds a step: least, median, most | in collectives |")
    print("|---|---|---|---|---|")
    for row in found:
        seconds = ", ".join(f"{value:.2f}" for value in row["seconds_a_step"])
        layout = f"{row['processes']} x {row['threads']} | {row['engine']}"
        print(f"| {layout} | {row['frames_a_second']:.1f} | {seconds} | {row['communication']:.0%} |")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("processes, threads, engine", LAYOUTS, ids=lambda value: str(value))
def test_ranks(benchmark, rows, processes, threads, engine):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    words = ["benchmarks/rank_cost.py", PRESET, str(STEPS), str(threads)]
    command = [sys.executable, *words] if engine == "plain" else [sys.executable, *launcher, *words, engine]

    def run():
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    row = benchmark.pedantic(run, rounds=1)
    assert (row["processes"], row["threads"]) == (processes, threads)
    rows.append(row)
    benchmark.extra_info |= row
