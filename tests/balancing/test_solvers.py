"""What every solver must keep, and what each promises; against TorchJD where it has the same."""

import warnings

import pytest
import torch

from aime_fast.balancing.balancer import Balancer
from aime_fast.balancing.layouts.layout import Layout
from aime_fast.balancing.rgb import RGB
from aime_fast.balancing.solvers.registry import SOLVERS, make_solver
from aime_fast.balancing.solvers.solver import Problem
from aime_fast.config import BalancingConfig
from aime_fast.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchjd.aggregation import MGDAWeighting, SumWeighting, UPGradWeighting

TASKS = [2, 3, 5, 8]
ORDERED = {"pcgrad"}
"""Solvers whose weights depend on an order of the tasks."""
SCALE_FREE = {"rotation"}
"""Solvers whose update does not change with the scale of one loss."""
PEACEFUL = {"mgda", "upgrad"}
"""Solvers whose update conflicts with no task."""


def vectors_of(n, kind, seed=0):
    """Task gradients [n, P]: random ones, conflicting ones, and linearly dependent ones."""
    generator = torch.Generator().manual_seed(100 * n + seed)
    size = {"random": 40, "conflicting": 40, "dependent": max(1, n - 1)}[kind]
    vectors = torch.randn(n, size, generator=generator, dtype=torch.float64)
    if kind == "conflicting":
        vectors = vectors - 1.05 * vectors.mean(0)
    return vectors


def update_of(name, vectors, losses=None, steps=2):
    """The update after some steps on the same gradients, and the report."""
    n = len(vectors)
    layout = Layout()
    balancer = Balancer(BalancingConfig(solver=name, groups="all"), layout, [], [str(i) for i in range(n)])
    losses = torch.ones(n, dtype=torch.float64) if losses is None else losses
    for _ in range(steps):
        layout.given = [[vector.clone()] for vector in vectors]
        report = balancer.balance(losses)
    return report.update[0], report


@pytest.mark.parametrize("kind", ["random", "conflicting", "dependent"])
@pytest.mark.parametrize("n", TASKS)
@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - ORDERED))
def test_permuting_tasks_changes_no_update(name, n, kind):
    vectors, order = vectors_of(n, kind), torch.randperm(n, generator=torch.Generator().manual_seed(n))
    losses = torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    plain, _ = update_of(name, vectors, losses)
    permuted, _ = update_of(name, vectors[order], losses[order])
    torch.testing.assert_close(permuted, plain, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("n", TASKS)
@pytest.mark.parametrize("name", sorted(SCALE_FREE))
def test_scaling_a_loss_changes_no_update_where_promised(name, n):
    vectors = vectors_of(n, "random")
    plain, _ = update_of(name, vectors)
    vectors[1] *= 1e5
    torch.testing.assert_close(update_of(name, vectors)[0], plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("n", TASKS)
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_scaling_all_losses_scales_the_update_or_leaves_it(name, n, factor):
    vectors = vectors_of(n, "conflicting")
    plain, _ = update_of(name, vectors)
    scaled, _ = update_of(name, factor * vectors)
    wanted = plain if name in SCALE_FREE else factor * plain
    torch.testing.assert_close(scaled, wanted, rtol=1e-7, atol=1e-9 * wanted.norm().item())


@pytest.mark.parametrize("kind", ["random", "conflicting", "dependent"])
@pytest.mark.parametrize("n", TASKS)
@pytest.mark.parametrize("name", sorted(PEACEFUL))
def test_no_conflict_is_left_where_promised(name, n, kind):
    for seed in range(5):
        vectors = vectors_of(n, kind, seed)
        update, report = update_of(name, vectors)
        # UPGrad's regularisation lets conflicts of 1e-4 of the weights pass.
        slack = 1e-9 if name == "mgda" else 1.001e-4 * report.weights.max()
        assert (vectors @ update >= -slack * vectors.square().sum()).all()


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_task_without_a_gradient_takes_no_part(name):
    vectors = vectors_of(3, "conflicting")
    idle = torch.cat([vectors, torch.zeros_like(vectors[:1])])
    if name in ORDERED:
        pytest.skip("another number of tasks has other orders")
    update, report = update_of(name, idle)
    torch.testing.assert_close(update, update_of(name, vectors)[0], rtol=1e-6, atol=1e-9)
    assert report.active.tolist() == [True, True, True, False]


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_no_gradients_and_opposed_ones_give_finite_updates(name):
    nothing = torch.zeros(3, 10, dtype=torch.float64)
    update, report = update_of(name, nothing)
    assert report.finite and update.eq(0).all()
    g = vectors_of(2, "random")[0]
    for signs in ((1, -1), (1, 1, -1), (1, 1, 1)):
        update, report = update_of(name, torch.stack([sign * g for sign in signs]))
        assert report.finite and update.isfinite().all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_step_that_is_not_finite_changes_nothing(name, poison):
    layout, vectors = Layout(), vectors_of(3, "random")
    balancer = Balancer(BalancingConfig(solver=name, groups="all"), layout, [], ["a", "b", "c"])
    updates = []
    for step in range(4):
        layout.given = [[vector.clone()] for vector in vectors]
        if step == 2:
            layout.given[1][0][3] = poison
            before = {key: value.clone() for key, value in balancer.state.items()}
        report = balancer.balance(torch.ones(3, dtype=torch.float64))
        updates.append(report.update[0])
        if step == 2:
            assert not report.finite and report.update[0].eq(0).all()
            assert all(torch.equal(balancer.state[key], value) for key, value in before.items())
    assert all(update.isfinite().all() for update in updates)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_state_survives_in_place_and_from_a_file(name, tmp_path):
    def step(balancer, seed):
        balancer.layout.given = [[vector.clone()] for vector in vectors_of(3, "conflicting", seed)]
        return balancer.balance(torch.tensor([1.0, 5.0, 0.2]).double()).update[0]

    first, second = (
        Balancer(BalancingConfig(solver=name, groups="all"), Layout(), [], ["a", "b", "c"]) for _ in range(2)
    )
    step(first, 0)
    addresses = {key: value.data_ptr() for key, value in first.state.items()}
    step(first, 1)
    assert addresses == {key: value.data_ptr() for key, value in first.state.items()}, "a captured graph replays them"
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in (2, 3):
        assert torch.equal(step(second, seed), step(first, seed))


def test_the_state_of_another_solver_is_refused():
    rotation, plain = (
        Balancer(BalancingConfig(solver=s, groups="all"), Layout(), [], ["a", "b"]) for s in ("rotation", "sum")
    )
    rotation.layout.given = [[vector] for vector in vectors_of(2, "random")]
    rotation.balance()
    with pytest.raises(UserError, match=r"of solver 'rotation' with \['angles', 'counter'\], this run has 'sum'"):
        plain.load_state_dict(rotation.state_dict())


@pytest.mark.parametrize("kind", ["random", "conflicting"])
@pytest.mark.parametrize("n", TASKS)
def test_weights_equal_those_of_torchjd(n, kind):
    """Its MGDA iterates, so it is given the steps to converge."""
    theirs = {"upgrad": UPGradWeighting(), "mgda": MGDAWeighting(epsilon=1e-9, max_iters=3000), "sum": SumWeighting()}
    for seed in range(3):
        vectors = vectors_of(n, kind, seed)
        gram = vectors @ vectors.t()
        for name, weighting in theirs.items():
            solution = SOLVERS[name](BalancingConfig()).solve(Problem.of(gram[None], n), {}, None)
            torch.testing.assert_close(solution.weights[0], weighting(gram), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "conflicting", "dependent"])
@pytest.mark.parametrize("n", TASKS)
@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_mgda_meets_the_conditions_of_optimality(n, kind, spread):
    """On the simplex, and no task gradient is nearer to the origin along the update than the update itself."""
    for seed in range(5):
        vectors = vectors_of(n, kind, seed) * torch.logspace(0, 1, n, base=spread, dtype=torch.float64)[:, None]
        update, report = update_of("mgda", vectors, steps=1)
        weights = report.weights[0]
        assert (weights >= 0).all() and weights.sum() == pytest.approx(1.0)
        slack = 1e-7 * vectors.square().sum(1).min()
        assert (vectors @ update >= update @ update - slack * spread).all()


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_leaves_no_conflict_between_two_tasks(seed):
    vectors = vectors_of(2, "conflicting", seed)
    update, _ = update_of("pcgrad", vectors)
    assert (vectors @ update >= -1e-9 * vectors.square().sum(1)).all()
    assert vectors[0] @ vectors[1] < 0


def test_uncertainty_weights_approach_one_by_the_loss():
    losses = torch.tensor([4.0, 0.25, -2.0, 0.0], dtype=torch.float64)
    _, report = update_of("uncertainty", vectors_of(4, "random"), losses, steps=2000)
    weights = report.weights[0]
    torch.testing.assert_close(weights[:3], 1 / losses[:3].abs(), rtol=1e-3, atol=0)
    assert weights[3] == pytest.approx(torch.e**10)
    first = update_of("uncertainty", vectors_of(4, "random"), losses, steps=1)[1].weights
    assert first.tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_groups_are_solved_apart(name):
    """Batched over groups: each group's weights are those that it has alone."""
    n, solver = 3, SOLVERS[name](BalancingConfig())
    extra = int(solver.needs_direction)
    stacks = [torch.cat([vectors_of(n, "conflicting", seed), vectors_of(2, "random", seed)[:extra]]) for seed in (0, 1)]
    grams = torch.stack([stack @ stack.t() for stack in stacks])
    losses = torch.ones(n, dtype=torch.float64)
    both = solver.solve(Problem.of(grams, n), solver.initial_state(2, n), losses)
    for number, gram in enumerate(grams):
        alone = solver.solve(Problem.of(gram[None], n), solver.initial_state(1, n), losses)
        torch.testing.assert_close(both.weights[number], alone.weights[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_nothing_is_read_on_the_host(name, monkeypatch):
    def refuse(self, *args):
        raise AssertionError("read on the host")

    layout, vectors = Layout(), [[vector] for vector in vectors_of(3, "random")]
    balancer, losses = (
        Balancer(BalancingConfig(solver=name, groups="all"), layout, [], ["a", "b", "c"]),
        torch.ones(3).double(),
    )
    for method in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    for _ in range(2):
        layout.given = vectors
        balancer.balance(losses)


def test_bad_solvers_and_numbers_of_tasks_are_refused():
    with pytest.raises(UserError, match=r"solver 'mdga'; did you mean 'mgda'\? choose from rotation, sum"):
        make_solver(BalancingConfig(solver="mdga"), 3)
    with pytest.raises(UserError, match="mgda needs at least 2 and at most 8 tasks, the run has 1; change --tasks"):
        make_solver(BalancingConfig(solver="mgda"), 1)
    with pytest.raises(UserError, match=r"upgrad needs .* the run has 11"):
        make_solver(BalancingConfig(solver="upgrad"), 11)
    for name, kind in SOLVERS.items():
        assert isinstance(make_solver(BalancingConfig(solver=name), 2), kind)


def test_rgb_is_the_rotation_solver():
    vectors = vectors_of(3, "conflicting")
    rgb = RGB()
    for _ in range(2):
        report = rgb.balance([[vector.clone()] for vector in vectors])
    assert torch.equal(report.update[0], update_of("rotation", vectors)[0])
