import json
import os
import sys
import time
from types import SimpleNamespace
from typing import get_args

import made_probes
import psutil
import pytest
import torch

from aime_fast import doctor
from aime_fast.commands import main as cli
from aime_fast.doctor import CHECKS, Check, Result, can_train, checks, graphics, probes, run_check, table
from aime_fast.doctor.graphics import GRAPHICS, soften
from aime_fast.kernel_mode import WORDS
from aime_kernels.dispatch import Mode

GB = 10**9


def ask(name, **options):
    return run_check(Check(name, getattr(made_probes, name), "the fix", **options))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("crash", "crashed (SIGSEGV)"),
        ("abort", "crashed (SIGABRT)"),
        ("missing", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("silent", "ended with exit code 3 and no answer"),
    ],
)
def test_a_probe_that_fails_is_a_row_of_the_table(name, found):
    assert ask(name) == Result(name, "warning", found, "the fix")
    assert ask(name, required=True) == Result(name, "failed", found, "the fix")


def test_a_probe_that_hangs_is_ended_with_its_helpers():
    assert ask("hang", seconds=1) == Result("hang", "warning", "no answer in 1 s", "the fix")


def test_a_probe_is_heard_through_the_noise():
    assert ask("well") == Result("well", "ok", "well", "")
    assert ask("poor", required=True) == Result("poor", "failed", "poor", "mend it")
    assert ask("limited", required=True) == Result("limited", "warning", "slow", "speed it up")


def result(name, status):
    return Result(name, status, "found", "" if status == "ok" else "fix")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warning", 0), ("failed", 1)])
def test_the_exit_code_says_whether_training_can_work(monkeypatch, capsys, status, code):
    results = [result("torch", "ok"), result("DALI", status)]
    monkeypatch.setattr(doctor, "examine", lambda: results)
    assert cli.main(["doctor"]) == code
    table = capsys.readouterr().out
    assert table.splitlines()[1].split() == ["DALI", status, "found"]
    assert ("-> fix" in table) == (status != "ok")
    assert can_train(results) == (code == 0)
    assert cli.main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["can_train"] == (code == 0)
    assert told["checks"][1] == dict(name="DALI", status=status, found="found", fix="" if status == "ok" else "fix")


def test_the_kernels_and_their_routes(monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", "reference")
    row = checks.run_check(next(check for check in CHECKS if check.name == "kernels"))
    assert row.status == "ok" and row.found.startswith("AIME_KERNELS=reference")
    assert "reference: expected_kumaraswamy_beta_kl" in row.found


def test_another_word_for_the_kernels_is_a_mistake(monkeypatch, capsys):
    monkeypatch.setenv("AIME_KERNELS", "cuda")
    monkeypatch.setattr(doctor, "examine", lambda: pytest.fail("examined all the same"))
    assert cli.main(["doctor"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "AIME_KERNELS is 'cuda'" in told.err
    assert set(WORDS) == set(get_args(Mode))


def test_one_way_of_rendering_is_enough():
    rows = [result(check.name, "warning") for check in GRAPHICS]
    assert soften(rows) == rows
    rows[1] = result("OSMesa", "ok")
    fixes = [row.fix for row in soften([*rows, result("DALI", "warning")])]
    assert fixes == ["not needed while OSMesa works", "", "not needed while OSMesa works", "fix"]


def test_examine_keeps_the_order_of_the_checks(monkeypatch):
    monkeypatch.setattr(table, "run_check", lambda check: result(check.name, "ok"))
    assert [row.name for row in doctor.examine()] == [check.name for check in CHECKS]


def test_rendering_without_mujoco(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setitem(sys.modules, "mujoco", None)
    finding = graphics.render()
    assert (finding.found, finding.fix) == ("mujoco is not installed", "pip install 'aime-fast[dm_control]'")


def test_stale_locks_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert probes.extension_locks().fix == ""
    lock = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert probes.extension_locks().found == f"1 running in {tmp_path}"
    os.utime(lock, (time.time() - 3600,) * 2)
    finding = probes.extension_locks()
    assert finding.found == f"stale lock {lock}"
    assert finding.fix == f"rm {lock}"
    assert finding.status == "warning"


@pytest.mark.parametrize(("free", "status"), [(0.5, "failed"), (5, "warning"), (50, "ok")])
def test_room_in_the_runs_folder(tmp_path, monkeypatch, free, status):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probes.shutil, "disk_usage", _usage(free))
    finding = probes.runs_folder()
    assert finding.found == f"{free:.1f} GB free in {tmp_path}"
    assert finding.status == status
    (tmp_path / "runs").mkdir()
    assert probes.runs_folder().found.endswith("/runs")
    monkeypatch.setattr(probes.os, "access", lambda *_: False)
    assert probes.runs_folder().status == "failed"


@pytest.mark.parametrize(("free", "status"), [(0.06, "warning"), (8, "ok")])
def test_room_in_shared_memory(monkeypatch, free, status):
    monkeypatch.setattr(probes.shutil, "disk_usage", _usage(free))
    assert probes.shared_memory().status == status


@pytest.mark.parametrize(("free", "status"), [(0.5, "failed"), (2, "warning"), (16, "ok")])
def test_memory_that_is_free(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(probes, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * GB))
    assert probes.memory().status == status
    (tmp_path / "memory.current").write_text(str(3 * GB))
    (tmp_path / "memory.max").write_text("max\n")
    assert probes.memory().status == status
    # A container's limit counts where it is tighter.
    (tmp_path / "memory.max").write_text(str(4 * GB))
    assert probes.memory().found == f"{min(free, 1):.1f} GB free"


def test_no_driver_is_no_failure(monkeypatch):
    monkeypatch.setattr(probes, "driver_version", lambda: None)
    assert probes.cuda().status == "warning"


def test_torch_computes_here():
    assert probes.torch().found.startswith(torch.__version__)


def _usage(gigabytes):
    return lambda folder: SimpleNamespace(free=gigabytes * GB)


def test_the_form_of_the_pixel_likelihood(monkeypatch, tmp_path):
    check = next(check for check in CHECKS if check.name == "C++")
    assert checks.run_check(check).status in ("ok", "warning")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = checks.run_check(check)
    assert row.status == "warning" and "torch operators" in row.found
    assert row.fix in ("no C++ compiler; install g++", "the CPU has no AVX2")
    monkeypatch.setenv("AIME_KERNELS", "reference")
    row = checks.run_check(check)
    assert (row.status, row.found) == ("ok", "AIME_KERNELS=reference: the pixel likelihood runs as torch operators")
