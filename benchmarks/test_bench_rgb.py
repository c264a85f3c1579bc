"""Gradient balancing beyond the backward passes: ours against the direct form and against TorchJD.

The Gram form is what the trainer runs: from n task gradients to one update. `tensors` is how one process holds a
gradient, in the shapes of the `paper` model; `flat` is one ZeRO shard. The direct form works on the long gradients and
is the oracle of the tests. TorchJD solves another problem for the same update (UPGrad); its peer in ours is that
solver. CPU seconds of one thread.

`test_solver` times decisions alone, from the Gram matrix to the weights, ours and TorchJD's, for 3 and 8 tasks.
"""

import time
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from direct import direct_balance
from measuring import alternating, peak_bytes, threads
from torchjd.aggregation import MGDAWeighting, PCGradWeighting, SumWeighting, UPGrad, UPGradWeighting

from aime_fast.balancing.balancer import Balancer
from aime_fast.balancing.layouts.layout import Layout
from aime_fast.balancing.rgb import RGB
from aime_fast.balancing.solvers.registry import SOLVERS
from aime_fast.balancing.solvers.solver import Problem
from aime_fast.config import BalancingConfig, preset_config
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder

pytestmark = pytest.mark.timeout(600)
TASKS = 3
QUICK = pytest.param(1_000_000, 9, id="1M", marks=pytest.mark.quick)
FULL = pytest.param(10_000_000, 5, id="10M")
PAPER = pytest.param(34_000_000, 5, id="34M", marks=pytest.mark.slow)
PEERS = {
    "upgrad": UPGradWeighting(),
    "mgda": MGDAWeighting(epsilon=1e-9, max_iters=3000),
    "pcgrad": PCGradWeighting(),
    "sum": SumWeighting(),
}
"""TorchJD's solvers of ours' names. Its MGDA iterates, so it is given the steps to come as near as ours."""


def shapes_of(layout, size):
    """Shapes of the tensors that hold one gradient of `size` entries."""
    if layout == "flat":
        return [(size,)]
    with torch.device("meta"):
        model = DPGMMVariationalRecurrentAutoencoder.from_config(replace(preset_config("paper").model, action_dim=6))
    shapes, left = [], size
    for parameter in cycle([p for p in model.parameters() if p.requires_grad]):
        if parameter.numel() >= left:
            return [*shapes, (left,)]
        shapes.append(tuple(parameter.shape))
        left -= parameter.numel()


def gradients(layout, size):
    """Gradients of all tasks, and a call that brings back the first, where the update takes its place."""
    rows = [[torch.randn(shape) for shape in shapes_of(layout, size)] for _ in range(TASKS)]
    first = [tensor.clone() for tensor in rows[0]]

    def restore():
        for tensor, gradient in zip(rows[0], first, strict=True):
            tensor.copy_(gradient)

    return rows, restore


@pytest.mark.parametrize("size, rounds", [QUICK, FULL, PAPER])
def test_rotation(record_forms, record, size, rounds):
    rows, restore = gradients("tensors", size)
    flat, restore_flat = gradients("flat", size)
    long = torch.stack([vector[0] for vector in flat])
    state = torch.zeros(size), torch.zeros(TASKS)
    _, *state = direct_balance(long, *state)
    of_tensors, of_flat = RGB(), RGB()
    forms = {
        "Gram form, tensors": lambda: of_tensors.balance(rows),
        "Gram form, flat": lambda: of_flat.balance(flat),
        "direct form": lambda: direct_balance(long, *state),
    }

    def setup():
        restore()
        restore_flat()

    shape = f"{TASKS} tasks of {size:,}"
    with threads(1):
        samples = alternating(forms, rounds, warm_up=1, setup=setup, clock=time.process_time)
        peak = peak_bytes(forms["Gram form, tensors"])
    record_forms("balancing", samples, baseline="direct form", paired=True, unit="CPU s", shape=shape, dtype="float32")
    one = ("one gradient", [4.0 * size])
    record(
        "balancing, memory beyond the gradients",
        "Gram form, tensors",
        [float(peak)],
        unit="bytes",
        shape=shape,
        dtype="float32",
        baseline=one,
    )


@pytest.mark.parametrize("size, rounds", [QUICK, FULL, PAPER])
def test_upgrad(record_forms, size, rounds):
    """The same update as TorchJD's, in place and in one pass each over the gradients."""
    rows, restore = gradients("flat", size)
    balancer = Balancer(BalancingConfig(solver="upgrad", groups="all"), Layout(), [], ["any"] * TASKS)
    matrix, theirs = torch.stack([vector[0] for vector in rows]), UPGrad()

    def ours():
        balancer.layout.given = [list(vector) for vector in rows]
        return balancer.balance().update[0]

    with threads(1):
        torch.testing.assert_close(ours(), theirs(matrix), rtol=1e-3, atol=1e-3)
        forms = {"ours": ours, "TorchJD": lambda: theirs(matrix)}
        samples = alternating(forms, rounds, warm_up=1, setup=restore, clock=time.process_time)
    shape = f"{TASKS} tasks of {size:,}"
    record_forms(
        "balancing, UPGrad", samples, baseline="TorchJD", paired=True, unit="CPU s", shape=shape, dtype="float32"
    )


@pytest.mark.quick
@pytest.mark.parametrize("tasks", [3, 8])
@pytest.mark.parametrize("name", SOLVERS)
def test_solver(record_forms, name, tasks):
    """On conflicting gradients, in float64."""
    solver = SOLVERS[name](BalancingConfig())
    vectors = torch.randn(tasks + solver.needs_direction, 50, dtype=torch.float64)
    vectors = vectors - 1.05 * vectors.mean(0)
    gram, losses = vectors @ vectors.t(), torch.ones(tasks, dtype=torch.float64)
    state = solver.initial_state(1, tasks)
    forms = {"ours": lambda: solver.solve(Problem.of(gram[None], tasks), state, losses)}
    if name in PEERS:
        forms["TorchJD"] = lambda: PEERS[name](gram)
    with threads(1):
        samples = alternating(forms, 50, warm_up=5)
    baseline = "TorchJD" if name in PEERS else "ours"
    record_forms(
        "solver", samples, baseline=baseline, paired=True, unit="s", shape=f"{name}, {tasks} tasks", dtype="float64"
    )
