"""Gradient balancing beyond the backward passes: Gram, solve and combination against the direct form.

Three tasks of 34 M parameters. `tensors` is how one process holds a gradient, in the shapes of the paper model; `flat`
is one ZeRO shard. The target is a fifth of the direct form's time. One thread; the direct form takes minutes and 12 GB.
Run with `make bench ARGS=benchmarks/test_bench_rgb.py`; on a busy machine add `--benchmark-timer=time.process_time`.
`extra_info` holds the fastest, median and slowest round in seconds, and for the Gram form the most memory that a call
adds. `test_solver` measures each solver alone, on one group of 3 and 8 tasks; its target is below 1 ms.
"""

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from direct import direct_balance
from measuring import peak_bytes

from aime_fast.balancing.rgb import RGB
from aime_fast.balancing.solvers.registry import SOLVERS
from aime_fast.balancing.solvers.solver import Problem
from aime_fast.config import BalancingConfig, preset_config
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder

pytestmark = pytest.mark.timeout(1800)
TASKS, SIZE = 3, 34_000_000


def shapes_of(layout):
    """Shapes of the tensors that hold one gradient of `SIZE` entries."""
    if layout == "flat":
        return [(SIZE,)]
    with torch.device("meta"):
        model = DPGMMVariationalRecurrentAutoencoder.from_config(replace(preset_config("paper").model, action_dim=6))
    shapes, left = [], SIZE
    for parameter in cycle([p for p in model.parameters() if p.requires_grad]):
        if parameter.numel() >= left:
            return [*shapes, (left,)]
        shapes.append(tuple(parameter.shape))
        left -= parameter.numel()


def measure(benchmark, call, rounds, setup=None):
    benchmark.group = "balance"
    benchmark.pedantic(call, setup=setup, rounds=rounds)
    stats = benchmark.stats.stats
    benchmark.extra_info["seconds"] = [round(t, 4) for t in (stats.min, stats.median, stats.max)]


@pytest.mark.parametrize("layout", ["tensors", "flat"])
def test_gram_form(benchmark, layout):
    """What the trainer runs, from n gradients to the update in the first one's place."""
    torch.set_num_threads(1)
    rows = [[torch.randn(shape) for shape in shapes_of(layout)] for _ in range(TASKS)]
    first, rgb = [tensor.clone() for tensor in rows[0]], RGB()

    def restore():
        for tensor, gradient in zip(rows[0], first, strict=True):
            tensor.copy_(gradient)  # where the update has taken its place

    rgb.balance(rows)
    measure(benchmark, lambda: rgb.balance(rows), 15, restore)
    benchmark.extra_info["tensors"] = len(first)
    benchmark.extra_info["peak_megabytes"] = round(peak_bytes(lambda: rgb.balance(rows)) / 1e6, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_direct_form(benchmark, dtype):
    """The oracle on the joined gradients; joining them is not counted."""
    torch.set_num_threads(1)
    rows = torch.randn(TASKS, SIZE, dtype=dtype)
    direction, angles = torch.zeros(SIZE, dtype=dtype), torch.zeros(TASKS, dtype=dtype)
    _, direction, angles = direct_balance(rows, direction, angles)
    measure(benchmark, lambda: direct_balance(rows, direction, angles), 3)


@pytest.mark.parametrize("tasks", [3, 8])
@pytest.mark.parametrize("name", SOLVERS)
def test_solver(benchmark, name, tasks):
    """A solver's decision on conflicting gradients, from the Gram matrix to the weights."""
    torch.set_num_threads(1)
    solver = SOLVERS[name](BalancingConfig())
    vectors = torch.randn(tasks + solver.needs_direction, 50, dtype=torch.float64)
    vectors = vectors - 1.05 * vectors.mean(0)
    gram, losses = (vectors @ vectors.t())[None], torch.ones(tasks, dtype=torch.float64)
    state = solver.initial_state(1, tasks)
    benchmark.group = f"solver, {tasks} tasks"
    benchmark.pedantic(lambda: solver.solve(Problem.of(gram, tasks), state, losses), rounds=200, warmup_rounds=5)
