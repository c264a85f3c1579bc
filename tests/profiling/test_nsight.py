"""Nsight Systems, where it is installed, records the phases of real steps, and only of those that are captured."""

import importlib.metadata
import re
import shutil
import sqlite3

import pytest

from aime_fast.commands.main import main
from aime_fast.errors import UserError
from aime_fast.profiling.nsight import under_nsys

STEPS = 3
THREADS = """SELECT COALESCE(text, value), globalTid FROM NVTX_EVENTS LEFT JOIN StringIds ON id = textId"""
PHASES = {
    *("data", "wait", "forward", "backward", "balance", "step", "averages", "log", "checkpoint", "profiled steps"),
    *(f"backward/{task}" for task in ("elbo", "perceiver", "predictive")),
}


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("nsys") is None, reason="Nsight Systems (nsys) is not installed")
def test_nsys_records_the_captured_steps(tmp_path, capfd):
    assert importlib.metadata.version("nvtx") == "0.2.11"
    arguments = ["--preset", "debug", "--steps", str(STEPS), "--warm-up", "2", "--out", str(tmp_path / "out")]
    assert main(["profile", "--under", "nsys", *arguments]) == 0
    lines = re.findall(r"^ +[\d.]+ +\d+ +(\d+) .* (?:PushPop|StartEnd) +(\S.*?) *$", capfd.readouterr().out, re.M)
    instances = {name: int(number) for number, name in lines}
    assert set(instances) == PHASES
    assert instances["profiled steps"] == instances["checkpoint"] == 1
    assert {instances[name] for name in ("wait", "forward", "backward/elbo", "balance", "step")} == {STEPS}
    with sqlite3.connect(tmp_path / "out" / "nsys.sqlite") as report:
        threads = dict(report.execute(THREADS))
    assert threads["data"] != threads["forward"]


@pytest.fixture
def made_nsys(tmp_path, monkeypatch):
    """A program named `nsys` in a folder of its own, from the lines of a shell script."""

    def make(script):
        tool = tmp_path / "nsys"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return make


def test_what_nsys_is_asked_for(made_nsys, tmp_path):
    made_nsys(
        f'echo "$@" >> {tmp_path}/calls\n'
        f"case $1 in profile) touch {tmp_path}/nsys.nsys-rep;; --version) echo made;; esac\n"
        'case "$*" in *help-reports*) echo nvtx_sum; exit 1;; *--report*) echo "bar ** NVTX ** forward";; esac'
    )
    assert under_nsys(["program", "--flag"], tmp_path, on_card=True) == " ** NVTX ** forward\n"
    profile, _, stats = (tmp_path / "calls").read_text().splitlines()
    assert profile.endswith("program --flag")
    assert "--trace=nvtx,cuda" in profile and "--nvtx-capture=profiled steps" in profile
    assert "--report=nvtx_sum,gpukernsum" in stats


@pytest.mark.parametrize(
    "script, message",
    [
        ("echo 'it is broken' >&2; exit 3", "nsys ended with exit code 3: it is broken"),
        ("exit 0", "nsys wrote no report to"),
        ('[ "$1" != profile ] || touch "$(dirname "$0")/nsys.nsys-rep"', "nsys recorded no phase"),
    ],
)
def test_what_goes_wrong_is_said(made_nsys, tmp_path, script, message):
    made_nsys(script)
    with pytest.raises(UserError, match=message):
        under_nsys(["program"], tmp_path, on_card=False)
