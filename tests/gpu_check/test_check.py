"""Jobs run in order within a time; whatever one of them does, the others and all rows so far are kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gpu_check.records import Records
from made_jobs import PATHS, check, ends, job


def far():
    return time.monotonic() + 600


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("good", "ok", ""),
        ("raises", "failed", "ValueError: two lines:"),
        ("exits", "failed", "exit code 3"),
        ("killed", "failed", "killed by signal 9 (Killed)"),
        ("hangs", "timed out", "killed after 1 s"),
        ("skips", "skipped", "the moon is full"),
        ("prints_garbage", "ok", ""),
    ],
)
def test_how_a_job_ends_is_recorded_and_the_next_one_runs(tmp_path, name, status, why):
    made = check(tmp_path)
    code = made.run([job(name, limit=1.0 if name == "hangs" else 60.0), job("good", also=("twice",))], far())
    found = ends(made.records)
    assert found[name] == (status, why)
    assert found["good"] == ("ok", "")
    assert code == (status in ("failed", "timed out"))


def test_what_a_job_measured_and_printed_before_it_failed_is_kept(tmp_path):
    made = check(tmp_path)
    made.run([job("exits"), job("hangs", limit=12.0), job("raises")], far())
    values = {row["job"]: row["value"] for row in made.records.rows() if "status" not in row}
    assert values == {"hangs": 1, "raises": 1}
    lines = {row["job"]: row["last_lines"] for row in made.records.rows() if "status" in row}
    assert lines["exits"] == ["about to leave"]
    assert lines["hangs"] == ["waiting"]
    assert lines["raises"][-2:] == ["ValueError: two lines:", "the second"]


def test_garbage_is_told_from_rows(tmp_path):
    made = check(tmp_path)
    made.run([job("prints_garbage")], far())
    rows = [row for row in made.records.rows() if "status" not in row]
    assert [row.get("unreadable") for row in rows] == ["\ufffd no row\n", "[1, 2]\n", None]
    assert rows[-1]["value"] == 2


def test_jobs_that_do_not_fit_are_skipped_and_shorter_ones_still_run(tmp_path):
    made = check(tmp_path)
    code = made.run([job("hangs", least=30.0), job("good", least=1.0)], time.monotonic() + 20)
    assert ends(made.records) == {"hangs": ("skipped", "budget"), "good": ("ok", "")}
    assert code == 0


def test_a_limit_shrinks_to_what_is_left(tmp_path):
    made, started = check(tmp_path), time.monotonic()
    made.run([job("hangs", limit=60.0), job("good")], started + 2.5)
    assert time.monotonic() - started < 10
    assert ends(made.records)["hangs"][0] == "timed out"
    assert ends(made.records)["good"] == ("skipped", "budget")


def test_missing_packages_and_a_missing_card_are_said(tmp_path):
    made = check(tmp_path, missing=("deepspeed", "yaml"), device="cpu")
    made.run([job("good", needs=("deepspeed", "yaml", "numpy")), job("raises", card=True)], far())
    found = ends(made.records)
    assert found == {"good": ("skipped", "deepspeed, PyYAML are missing"), "raises": ("skipped", "needs a card")}


def test_a_continued_file_runs_only_what_did_not_end_well(tmp_path):
    jobs = [job("good"), job("exits")]
    check(tmp_path).run(jobs, far())
    check(tmp_path).run(jobs, far())
    statuses = [(row["job"], row["status"]) for row in Records(tmp_path / "out.jsonl").rows() if "status" in row]
    assert statuses == [("good", "ok"), ("exits", "failed"), ("exits", "failed")]


def alive(pid):
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SCRIPT = """
import sys, time
from pathlib import Path
from made_jobs import check, job
from gpu_check.check import interrupt, listen
from gpu_check.processes import adopt_orphans
listen(interrupt)
adopt_orphans()
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
jobs = [job("leaves_children", 600, options={"file": str(folder / "pids"), "seconds": seconds}), job("good")]
sys.exit(check(folder).run(jobs, time.monotonic() + 600))
"""


def start(folder, seconds):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(seconds)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PATHS})


def pids(folder):
    """The children of the job, once it has started them."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (folder / "pids").exists() and len(found := (folder / "pids").read_text().split()) == 2:
            return found
        time.sleep(0.02)
    raise AssertionError("the job did not start its children")


def test_no_child_outlives_its_job(tmp_path):
    process = start(tmp_path, 0.0)
    children = pids(tmp_path)
    assert process.wait(60) == 0
    assert not any(map(alive, children))
    assert ends(Records(tmp_path / "out.jsonl")) == {"leaves_children": ("ok", ""), "good": ("ok", "")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_check_and_says_what_did_not_run(tmp_path, number):
    process = start(tmp_path, 600.0)
    children = pids(tmp_path)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert not any(map(alive, children))
    reason = ("interrupted", f"signal {int(number)}")
    assert ends(Records(tmp_path / "out.jsonl")) == {"leaves_children": reason, "good": reason}


def test_a_file_that_ends_in_half_a_line_is_continued(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"stage": "steps", "job": "a", "value": 1}\n{"stage": "ste')
    records = Records(path)
    records.append({"stage": "steps", "job": "b"})
    assert [row["job"] for row in records.rows()] == ["a", "b"]
    assert json.loads(path.read_text().splitlines()[-1]) == {"stage": "steps", "job": "b"}
