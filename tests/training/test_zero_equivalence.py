"""ZeRO 0 to 3 at world sizes 1 and 2 against one process that sees the whole batch and balances directly."""

import os
import socket
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from direct import direct_balance
from engine_worker import CLIP, FAST, LR, SOLVER_STEPS, STEPS, WORLD_STEPS
from toy import Toy
from world import World

from aime_fast.balancing.groups import GROUPS
from aime_fast.balancing.solvers.registry import SOLVERS
from aime_fast.balancing.solvers.solver import Problem
from aime_fast.config import BalancingConfig, OptimConfig
from aime_fast.training.engines.engine import ADAM_EPSILON

OPTIM = OptimConfig()
torch.set_num_threads(1)
# The first test waits for every case of both world sizes.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

COMPARED = ("parameters", "gradients", "norms", "losses")


def launch(world_size, folder, *words):
    """The worker's processes at this world size."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size)}
    common |= {"OMP_NUM_THREADS": "1", "DEEPSPEED_TIMEOUT": "1"}
    if world_size == 1:
        del common["MASTER_PORT"]
    script = str(Path(__file__).with_name("engine_worker.py"))
    return [
        subprocess.Popen(
            [sys.executable, script, str(folder), *words],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_workers(tmp_path_factory.mktemp("ranks"))


def run_workers(folder, *words):
    """{(world size, rank): {case: values}}, and the workers must have printed nothing."""
    found = {}
    for world_size in (1, 2):
        processes = launch(world_size, folder, *words)
        try:
            printed = [process.communicate(timeout=400)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for rank, process in enumerate(processes):
            assert process.returncode == 0, printed[rank]
            assert printed[rank] == "", "DeepSpeed and torch should be quiet"
            found[world_size, rank] = torch.load(folder / f"{world_size}-{rank}.pt", weights_only=True)
    return found


class Direct:
    """Balances whole gradients in float64: rotation by its direct form, other solvers from each group's own vectors."""

    def __init__(self, solver, groups, module):
        self.solver, self.groups, self.states = solver, groups, {}
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.names = torch.cat([torch.full((p.numel(),), hash(name.partition(".")[0])) for name, p in named])

    def __call__(self, vectors, losses):
        if self.groups == "all":
            return self._group(0, vectors, losses)
        update = vectors.sum(0)
        if self.groups == "shared":
            masks = [self.reached.sum(0) > 1]
        else:
            masks = [self.names == name for name in self.names.unique()]
        for number, mask in enumerate(masks):
            update[mask] = self._group(number, vectors[:, mask], losses)
        return update

    def _group(self, number, vectors, losses):
        n, size = vectors.shape
        if self.solver == "rotation":
            known = self.states.get(number, (torch.zeros(size).double(), torch.zeros(n).double()))
            update, *self.states[number] = direct_balance(vectors, *known)
            return update
        solver = SOLVERS[self.solver](BalancingConfig())
        state = self.states.get(number, solver.initial_state(1, n))
        solution = solver.solve(Problem.of((vectors @ vectors.t())[None], n), state, losses.double())
        self.states[number] = solution.state
        return solution.weights[0] @ vectors


def entries_trained(module, parameters, tasks):
    """Which entries each task trains, bool [n, P]: not those of the modules that it spares."""
    spares = getattr(module, "spares", [frozenset()] * tasks)
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    sizes = torch.tensor([p.numel() for p in parameters])
    kept = [[not any(name.startswith(f"{spared}.") for spared in left) for name in names] for left in spares]
    return torch.tensor(kept).repeat_interleave(sizes, 1)


@cache
def reference(name="sgd", kind=Toy, steps=STEPS, solver="rotation", groups="all"):
    """What each step of plain torch gives: whole-batch gradients, balancing by `Direct`, clipping.

    By name: the parameters after it, the balanced and clipped gradient, its norm before clipping, the losses after it.
    """
    module = kind()
    parameters = [p for p in module.parameters() if p.requires_grad]
    wide, rest = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    stepped = [{"params": wide, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    kinds = {
        "sgd": torch.optim.SGD,
        "adamw": partial(torch.optim.AdamW, betas=(OPTIM.beta1, OPTIM.beta2), eps=ADAM_EPSILON),
    }
    optimizer = kinds[name](stepped, lr=LR[name], fused=False, foreach=False)
    balance, trail = Direct(solver, groups, module), []
    for step in range(steps):
        observations, actions, noise = module.inputs(step)
        losses = module.losses(module(observations, actions, noise.rows(0, len(observations))))
        trained = entries_trained(module, parameters, len(losses))
        balance.reached = torch.stack([reached(loss, parameters) for loss in losses]) & trained
        vectors = torch.stack([flat_gradient(loss, parameters) for loss in losses]).double() * trained
        update = balance(vectors, torch.stack(losses).detach())
        norm = update.norm()
        update *= (CLIP / (norm + 1e-6)).clamp(max=1.0)
        for parameter, gradient in zip(parameters, update.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = gradient.view(parameter.shape).float()
        optimizer.step()
        with torch.no_grad():
            losses = torch.stack(module.losses(module(observations, actions, noise)))
        trail.append((torch.cat([p.detach().flatten() for p in parameters]), update.float(), norm.float(), losses))
    return {name: torch.stack(rows) for name, rows in zip(COMPARED, zip(*trail, strict=True), strict=True)}


def flat_gradient(loss, parameters):
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([gradient.flatten() for gradient in filled])


def reached(loss, parameters):
    """Whether the loss reaches each entry of the parameters."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([torch.full((p.numel(),), g is not None) for p, g in zip(parameters, gradients, strict=True)])


def assert_equal(values, wanted, **tolerances):
    """Each of `COMPARED` within 1e-6, losses and norms also relative to their size, or what `tolerances` say."""
    for name in COMPARED:
        bounds = {"rtol": {"losses": 1e-4, "norms": 1e-6}.get(name, 0), "atol": tolerances.get(name, 1e-6)}
        torch.testing.assert_close(values[name], wanted[name], **bounds, msg=lambda text, name=name: f"{name}: {text}")


def relative(values, wanted):
    """Length of the difference of two tensors by the length of the second."""
    return (values - wanted).norm() / wanted.norm()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("case", [f"sgd-{stage}-{parts}" for stage in range(4) for parts in (1, 2)] + ["sgd-blocking"])
def test_sgd_equals_one_process_with_the_whole_batch(results, world_size, case):
    for rank in range(world_size):
        assert_equal(results[world_size, rank][case], reference())


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_world_model_equals_one_process_with_the_whole_batch(results, world_size, stage):
    for rank in range(world_size):
        assert_equal(results[world_size, rank][f"world-{stage}"], reference(kind=World, steps=WORLD_STEPS))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_adamw_equals_one_process_with_the_whole_batch(results, world_size, stage):
    for rank in range(world_size):
        assert_equal(results[world_size, rank][f"adamw-{stage}-1"], reference("adamw"), parameters=1e-5)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_ranks_hold_the_same_parameters_bit_for_bit(results, stage):
    for case in (
        f"sgd-{stage}-2",
        f"adamw-{stage}-1",
        f"rotation-module-{stage}",
        f"known-{stage}",
        f"bf16-sent-{stage}",
        "fp8-sent-0",
    ):
        assert torch.equal(results[2, 0][case]["parameters"], results[2, 1][case]["parameters"])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_reduction_of_what_each_task_reaches_equals_one_process(results, world_size, stage):
    for rank in range(world_size):
        assert_equal(results[world_size, rank][f"known-{stage}"], reference())
        wanted = reference(steps=SOLVER_STEPS, groups="shared")
        assert_equal(results[world_size, rank][f"known-shared-{stage}"], wanted)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("solver, groups", FAST)
def test_solvers_and_groups_equal_one_process_with_the_whole_batch(results, solver, groups, stage):
    wanted = reference(steps=SOLVER_STEPS, solver=solver, groups=groups)
    for cases in results.values():
        assert_equal(cases[f"{solver}-{groups}-{stage}"], wanted)


@pytest.mark.slow
def test_every_solver_and_every_kind_of_groups_equals_one_process(tmp_path):
    for cases in run_workers(tmp_path, "solvers").values():
        assert len(cases) == 4 * len(SOLVERS) * len(GROUPS)
        for case, values in cases.items():
            solver, groups, _ = case.split("-")
            assert_equal(values, reference(steps=SOLVER_STEPS, solver=solver, groups=groups))


@pytest.mark.parametrize("solver", ["rotation", "sum"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_nan_on_one_rank_skips_the_step_on_all(results, stage, solver):
    for where, cases in results.items():
        values = cases[f"nonfinite-{stage}-{solver}"]
        assert not values["finite"] and values["finite later"], where
        assert torch.equal(values["before"], values["after"])
        assert torch.isfinite(values["later"]).all() and not torch.equal(values["later"], values["after"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "known"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_is_bit_exact(results, stage, name):
    for cases in results.values():
        values = cases[f"resume-{stage}-{name}"]
        assert torch.equal(values["whole"], values["resumed"])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2])
def test_bf16_stays_near_float32(results, world_size, stage):
    """8 bits of mantissa round an operand by up to 2^-9 = 2e-3; sums over a batch average most of it out."""
    values, wanted = results[world_size, 0][f"bf16-{stage}"], reference()
    assert 0 < relative(values["parameters"][-1], wanted["parameters"][-1]) < 5e-3
    assert relative(values["losses"], wanted["losses"]) < 5e-3


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_sent_in_bf16_stay_near_float32(results, stage):
    """A contribution is rounded by up to 2^-9 of itself, as its operands are; alone nothing is sent."""
    found = results[2, 0][f"bf16-sent-{stage}"]
    assert 0 < relative(found["parameters"][-1], results[2, 0][f"bf16-{stage}"]["parameters"][-1]) < 5e-3
    assert 0 < relative(found["parameters"][-1], reference()["parameters"][-1]) < 5e-3


def test_an_update_sent_in_8_bits_stays_near_and_alone_nothing_is_rounded(results):
    """An entry of the update is rounded by up to 2^-4 of itself, so twenty steps change by less than that."""
    found = results[2, 0]["fp8-sent-0"]
    start = torch.cat([p.detach().flatten() for p in Toy().parameters()])
    moved = (results[2, 0]["bf16-sent-0"]["parameters"][-1] - start).norm()
    assert 0 < (found["parameters"][-1] - results[2, 0]["bf16-sent-0"]["parameters"][-1]).norm() < 2**-4 * moved
    assert torch.equal(results[1, 0]["fp8-sent-0"]["parameters"], results[1, 0]["bf16-sent-0"]["parameters"])


def test_an_update_in_8_bits_is_skipped_as_any_other(results):
    for cases in results.values():
        found = cases["fp8-nonfinite"]
        assert not found["finite"] and torch.equal(found["before"], found["after"])
        assert found["finite later"] and found["later"].isfinite().all()


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_world_model_in_bf16_stays_near_float32(results, world_size):
    values, wanted = results[world_size, 0]["world-bf16"], reference(kind=World, steps=WORLD_STEPS)
    assert 0 < relative(values["parameters"][-1], wanted["parameters"][-1]) < 5e-3
    assert relative(values["losses"], wanted["losses"]) < 5e-3


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_a_step_sends_and_holds(results, stage):
    """Two micro-batches, n = 3 tasks, two processes; padding rounds a group up to what its shards need."""
    size, tasks, micro_batches = sum(p.numel() for p in Toy().parameters()), 3, 2
    found = dict(results[2, 0][f"traffic-{stage}"])
    whole_rows, padding = tasks * size, tasks * 16
    if stage == 0:
        padding = 32 * tasks * len(list(Toy().parameters()))  # each parameter starts at a multiple of 32 entries
    # The Gram matrix, which the norm for clipping follows from, and the products of successive samples.
    assert found.pop("allreduce") == (tasks + 1) ** 2 + 4 * tasks
    assert whole_rows / 2 <= found.pop("rows") <= (whole_rows + padding) / 2
    gathered, reduced = found.pop("allgather"), found.pop("reduce_scatter")
    reductions = tasks * (1 if stage <= 1 else micro_batches)
    assert size <= gathered <= size + padding / tasks
    assert reductions * size <= reduced <= reductions * (size + padding / tasks)
    assert not found


@pytest.mark.slow
def test_eight_ranks_equal_one_process(tmp_path):
    """The layout of the published training: ZeRO-2 on eight processes, `debug`, three steps of SGD."""
    processes = launch(8, tmp_path, "eight")
    printed = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, printed
    wanted = reference(kind=partial(World, windows=8), steps=3)
    for rank in range(8):
        assert_equal(torch.load(tmp_path / f"8-{rank}.pt", weights_only=True), wanted)
