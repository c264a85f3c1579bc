"""`pytest benchmarks/` from outside: exit codes and lines of --compare, --write and missed limits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARK = """
import os, time
from measuring import alternating

def test_made(record_forms):
    forms = {"ours": lambda: time.sleep(float(os.environ["OURS"])), "peer": lambda: time.sleep(0.01)}
    record_forms("made", alternating(forms, 7, warm_up=0), baseline="peer", paired=True, unit="s")
"""


@pytest.fixture
def bench(tmp_path):
    """Runs a made benchmark with the project's plug-in; returns the exit code and what was printed."""
    (tmp_path / "test_made.py").write_text(BENCHMARK)

    def run(*flags, ours=0.01, text=None):
        if text is not None:
            (tmp_path / "test_made.py").write_text(text)
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "benchmarks")))
        command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "benchmarks.conftest"]
        done = subprocess.run(
            [*command, tmp_path / "test_made.py", *map(str, flags)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "OURS": str(ours)},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_a_sleep_fails_the_comparison_and_a_faster_run_does_not(bench, tmp_path):
    code, printed = bench("--write", tmp_path / "before.json")
    assert code == 0 and "written: " in printed
    code, printed = bench("--compare", tmp_path / "before.json", ours=0.05)
    assert code == 1 and "worse: made: ours" in printed and "1 worse, 0 better, 0 alike" in printed
    code, printed = bench("--compare", tmp_path / "before.json", ours=0.001)
    assert code == 0 and "better: made: ours" in printed and "0 worse" in printed


def test_another_schema_ends_the_run_before_anything_is_measured(bench, tmp_path):
    (tmp_path / "old.json").write_text('{"benchmarks": []}')
    code, printed = bench("--compare", tmp_path / "old.json")
    lines = [line for line in printed.splitlines() if line]
    assert code == pytest.ExitCode.USAGE_ERROR and len(lines) == 1 and "not a file of 'aime-fast benchmarks" in lines[0]


MISSED = """
def test_made(record):
    record("step, CPU time a sequence", "as written", [2.0] * 5, unit="CPU s", shape="paper B=2 T=16")
"""


def test_a_missed_limit_fails_its_benchmark(bench):
    code, printed = bench(text=MISSED)
    assert code == 1 and "step, CPU time a sequence: as written paper B=2 T=16: target <= 1.8 missed" in printed


def test_an_epoch_that_is_none_is_refused(bench):
    code, printed = bench("--epoch", "2000,500", text="def test_made(epoch):\n    pass\n")
    assert code != 0 and "--epoch 2000,500: give three numbers" in printed
