"""The table is made from the file alone; what went wrong stands in it."""

import pytest
from gpu_check.report import report, table, targets


def step(job, **values):
    return {"stage": "steps", "job": job, **values}


def end(stage, job="", status="ok", why="", **more):
    return {"stage": stage, "job": job, "status": status, "why": why, "seconds": 1.5, **more}


def test_rows_of_a_job_become_one_line():
    rows = [
        step("a", first_step_s=2.0),
        step("a", ms=12.5, largest=[["k", 1, 0.5]]),
        end("steps", "a"),
        step("b", ms=7.0),
    ]
    lines = report(rows).splitlines()
    assert [line.split() for line in lines[1:]] == [["what", "first_step_s", "ms"], ["a", "2", "12.5"], ["b", "-", "7"]]


def test_rows_about_different_things_stay_apart():
    rows = [{"stage": "kernels", "job": "", "row": name, "kernel_ms": ms} for name, ms in (("x", 1.0), ("y", None))]
    assert [line.split() for line in report(rows).splitlines()[1:]] == [["what", "kernel_ms"], ["x", "1"], ["y", "-"]]


def test_failures_show_their_reason_and_last_lines():
    text = report([step("a", ms=1.0), end("steps", "a", "failed", "exit code 3", last_lines=["one", "two"])])
    assert "a: failed (1.5 s): exit code 3\n    | one\n    | two" in text


def test_skipped_jobs_with_one_reason_share_a_line():
    text = report([end("steps", name, "skipped", "budget") for name in "abcdefgh"] + [end("train", "", "skipped", "x")])
    assert "skipped: budget: 8 jobs, a first" in text
    assert text.endswith("\n  skipped: x")


def test_many_rows_are_cut():
    rows = [{"stage": "tests", "job": "", "row": f"test {n}", "outcome": "failed"} for n in range(60)]
    text = report(rows)
    assert "test 39" in text and "test 40" not in text and "... and 20 more rows in the file" in text


def test_a_second_try_replaces_the_first_unless_it_was_skipped():
    first = [{"stage": "tests", "job": "", "row": "old", "outcome": "failed"}, end("tests", "", "failed", "1 failed")]
    second = [{"stage": "tests", "job": "", "row": "new", "outcome": "failed"}, end("tests")]
    assert "old" not in report(first + second) and "new" in report(first + second)
    assert "1 failed" in report([*first, end("tests", "", "skipped", "budget")])


def test_an_epoch_of_the_published_sizes_is_counted():
    """2,000 episodes of 500 frames have 31 windows of 16 frames each at stride 16, and 30 of 32 frames."""
    rows = [
        {"what": "paper B=8 T=16 tf32 captured", "pipelined_ms": 10.0, "allocated_gb": 2.0, "card_gb": 3.0},
        {"what": "paper B=8 T=16 bf16 captured", "pipelined_ms": 5.0, "allocated_gb": 1.0, "card_gb": 2.0},
        {"what": "paper B=8 T=32 tf32 captured", "pipelined_ms": 20.0},
        {"what": "paper B=16 T=16 tf32 captured"},
    ]
    short, long = targets(rows)
    assert short["measured"] == "bf16 captured" and short["allocated_gb"] == 1.0
    assert short["steps_an_epoch"] == 2000 * 31 // 8
    assert short["seconds_an_epoch"] == pytest.approx(7750 * 0.005)
    assert long["steps_an_epoch"] == 7500 and long["seconds_an_epoch"] == pytest.approx(150.0)


def test_columns_are_aligned():
    lines = table([{"what": "a", "ms": 1.25}, {"what": "longer", "ms": 123456.7, "card": "x"}])
    assert lines == ["  what         ms  card", "  a          1.25  -", "  longer  123,457  x"]


def test_nothing_is_no_table():
    assert report([]) == ""
