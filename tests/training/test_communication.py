"""The formula of a step's traffic against the collectives of real steps on two and on four ranks."""

import json

import pytest
import torch
from launching import run_ranks

from aime_fast.balancing.layouts.communication import Traffic, all_reduce_bytes, traffic
from aime_fast.balancing.layouts.rounded import CODE

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=[2, 4])
def steps(request, tmp_path_factory):
    """(number of ranks, the cases of every rank)."""
    ranks = run_ranks(request.param, "traffic_worker.py", str(tmp_path_factory.mktemp("ranks")), timeout=500)
    assert [code for _, code in ranks] == [0] * request.param, ranks
    return request.param, [[json.loads(line) for line in printed.splitlines()] for printed, _ in ranks]


def formula(world_size, step, sizes="sizes", reach="reach"):
    case = step["case"]
    return traffic(
        step[sizes],
        [frozenset(tasks) for tasks in step[reach]],
        world_size,
        case["stage"],
        torch.bfloat16 if case.get("sent") else torch.float32,
        CODE if case.get("sent") == "fp8" else None,
        micro_batches=case.get("accumulation", 1),
        groups=2 if case.get("groups") == "shared" else 1,
        direction=case.get("solver") != "sum",
        frozen=step.get("frozen", 0),
    )


def test_what_ranks_send_equals_the_formula(steps):
    world_size, ranks = steps
    for cases in ranks:
        for step in cases:
            if "world" in step:
                continue
            sent, wanted = step["sent"], formula(world_size, step)
            reduction = "alltoall" if step["case"].get("sent") else "reduce_scatter"
            assert sent == {
                reduction: pytest.approx(wanted.reduced, rel=1e-12),
                "allgather": pytest.approx(wanted.gathered, rel=1e-12),
                "allreduce": pytest.approx(wanted.sums, rel=1e-12),
            }, step["case"]


def test_the_model_sends_what_the_formula_says_of_its_parameters(steps):
    """Beside padding, and its own small sums: codebook averages and means over the batch."""
    world_size, ranks = steps
    for cases in ranks:
        for step in (step for step in cases if "world" in step):
            wanted, sent = formula(world_size, step), step["sent"]
            assert sent["reduce_scatter"] == pytest.approx(wanted.reduced, rel=1e-12), step["case"]
            assert sent["allgather"] == pytest.approx(wanted.gathered, rel=1e-12), step["case"]
            bare = formula(world_size, step, "parameters", "parameter_reach")
            assert bare.gathered <= wanted.gathered <= 1.01 * bare.gathered
            assert bare.reduced <= wanted.reduced <= 1.4 * bare.reduced, "debug has small parts, which come together"


def test_the_formula_by_hand():
    """Two parameters of 8 and 4 entries on four ranks, the first of two tasks: 20 numbers reduced, 12 gathered."""
    reach = [frozenset({0, 1}), frozenset({1})]
    assert traffic([8, 4], reach, 4, 2, tasks=2) == Traffic((24.0, 36.0), 36.0, 2 * 0.75 * (9 + 8) * 8)
    halves = [traffic([8, 4], reach, 4, stage, torch.bfloat16, tasks=2) for stage in (0, 2)]
    assert [(half.reduced, half.gathered) for half in halves] == [(30, 18), (30, 36)]
    eighths = [traffic([128, 256], reach, 4, stage, torch.bfloat16, CODE, tasks=2).gathered for stage in (0, 1)]
    assert eighths == [0.75 * (384 + 3), 0.75 * 4 * 384], "a byte an entry and one a block"
    assert [traffic([8, 4], reach, 4, stage, micro_batches=3).reduced for stage in range(4)] == [60, 60, 180, 180]
    assert [traffic([8, 4], reach, 4, stage, frozen=8).gathered for stage in range(4)] == [36, 36, 36, 60]
    assert traffic([8, 4], reach, 1, 0).total == 0
    assert all_reduce_bytes(12, 4) == 72.0


def test_one_task_costs_one_all_reduce():
    """A reduce-scatter and an all-gather send what an all-reduce sends."""
    found = traffic([1000], [frozenset({0})], 8, 2, tasks=1)
    assert found.reduced + found.gathered == all_reduce_bytes(1000, 8)
