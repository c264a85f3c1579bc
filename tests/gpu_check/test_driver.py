"""The command as it is started: from a bare tree, in one line where it cannot run, with a table at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_CARD = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def gpu_check(*arguments, folder=ROOT, environment=NO_CARD):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = gpu_check("--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "finds no GPU; --device cpu" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "kernel"], "unknown stage 'kernel'; did you mean 'kernels'? choose from machine, agree, tests"),
        (["--table", "/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
        (["--table", __file__], f"{__file__}: has no results"),
        (["--budget", "nan"], "argument --budget: must be a number of seconds, not 'nan'"),
        (["--device", "gpu"], "argument --device: invalid choice: 'gpu'"),
        (["--device", "cpu", "--only", "machine", "--out", "/proc/x.jsonl"], "/proc/x.jsonl: cannot be written"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = gpu_check(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and message in done.stderr


def test_it_runs_away_from_the_tree_and_its_table_can_be_made_again(tmp_path):
    done = gpu_check("--device", "cpu", "--only", "machine", "--out", tmp_path / "out.jsonl", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "machine: ok" in done.stdout and "fp32_tflop_per_s: " in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["stage"] == "run" and rows[0]["device"] == "cpu"
    assert rows[-1]["status"] == "ok"
    again = gpu_check("--table", tmp_path / "out.jsonl")
    assert again.returncode == 0
    assert done.stdout.endswith(again.stdout)


def test_nothing_fits_no_budget(tmp_path):
    done = gpu_check("--device", "cpu", "--budget", 0, "--out", tmp_path)
    assert done.returncode == 0
    (results,) = tmp_path.glob("gpu-check-*.jsonl")
    rows = map(json.loads, results.read_text().splitlines())
    statuses = {(row["status"], row["why"]) for row in rows if "status" in row}
    assert statuses == {("skipped", "budget"), ("skipped", "needs a card")}


def test_the_driver_imports_the_standard_library_alone():
    code = (
        "import sys; before = set(sys.modules); sys.path.insert(0, 'benchmarks'); import gpu_check.driver\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert names - set(sys.stdlib_module_names) == {'gpu_check'}, names"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, check=True, timeout=60)


def test_the_make_target_needs_no_environment():
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "ARGS"))}
    command = ["make", "gpu-check", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=own)
    assert done.stdout.strip() == "python3 benchmarks/gpu_check"
