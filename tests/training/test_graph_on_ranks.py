"""Captured steps on two ranks equal steps as written, and ranks agree when a capture fails on one of them."""

import json

import pytest
from launching import run_ranks
from recording import tiny_options, write_recording

from aime_fast.training.compile.graph_capture import WARM_UP

STEPS = 6
SGD = {"name": "sgd", "lr": 0.005, "warmup_steps": 3, "tf32": False}


def run(tmp_path, jobs):
    """The lines of each rank, as {name: result}."""
    data = write_recording(tmp_path / "recording.pt")
    sent = [
        {
            "options": tiny_options(
                data, tmp_path / name, steps=STEPS, compile="off", optim=SGD, ds_config=job["ds_config"]
            ),
            "choice": job.get("choice", "auto"),
            "fails": job.get("fails", []),
        }
        for name, job in jobs.items()
    ]
    ranks = run_ranks(2, "graph_worker.py", json.dumps(sent), timeout=280)
    for printed, code in ranks:
        assert code == 0, printed
    return [
        dict(zip(jobs, [json.loads(line) for line in printed.splitlines() if line.startswith("{")], strict=True))
        for printed, _ in ranks
    ]


def assert_as_written(found, expected):
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-6)


def test_ranks_capture_alike_and_give_up_together(tmp_path):
    ranks = run(
        tmp_path,
        {
            "written": {"ds_config": "zero2", "choice": "off"},
            "zero0": {"ds_config": "zero0"},
            "zero2": {"ds_config": "zero2"},
            "rounded, written": {"ds_config": "zero0-fp8", "choice": "off"},
            "rounded": {"ds_config": "zero0-fp8"},
            "one fails": {"ds_config": "zero2", "fails": [1]},
            "one fails, demanded": {"ds_config": "zero0", "choice": "on", "fails": [1]},
        },
    )
    for results in ranks:
        for name in ("zero0", "zero2", "one fails"):
            assert_as_written(results[name], results["written"])
        assert_as_written(results["rounded"], results["rounded, written"])
        assert results["rounded"]["weights"] != results["written"]["weights"]
        assert results["rounded"]["replays"] == results["zero0"]["replays"]
        assert results["zero0"]["replays"] == STEPS - WARM_UP
        assert results["zero2"]["replays"] == 2 * (STEPS - WARM_UP)
        assert results["one fails"]["replays"] == 0
        assert "Cannot copy between CPU and CUDA tensors" in results["one fails"]["message"]
        assert "cannot be captured" in results["one fails, demanded"]["error"]
        assert len(results["one fails, demanded"]["losses"]) == WARM_UP


@pytest.mark.gpu(cards=2)
@pytest.mark.parametrize("stage", ["zero0", "zero0-fp8", "zero1", "zero2"])
def test_two_cards_capture_their_reductions(tmp_path, stage):
    ranks = run(tmp_path, {choice: {"ds_config": stage, "choice": choice} for choice in ("off", "on")})
    for results in ranks:
        assert_as_written(results["on"], results["off"])
