"""The decision on (n+1)^2 numbers against the vectors themselves, in float64, on random and on degenerate geometry."""

import math
from types import SimpleNamespace

import pytest
import torch
from direct import direct_balance
from hypothesis import assume, given
from hypothesis import strategies as st

from aime_fast.balancing.balancer import Balancer
from aime_fast.balancing.layouts.flat import FlatLayout
from aime_fast.balancing.solvers.rotation import ALIGNED, LARGEST_ANGLE, OPPOSED_ANGLE
from aime_fast.config import BalancingConfig

DEFAULTS = {"mu": 0.9, "lambd": 1.0, "steps": 3, "lr": 0.2}


def double(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decide(gram, angles, rotate=True, *, mu, lambd, steps, lr, rescale="none"):
    """What the balancer decides on one Gram matrix, with the solver's state and weights beside its report."""
    interval = 1 if rotate else 2
    config = BalancingConfig(
        mu=mu, lambd=lambd, alpha_steps=steps, lr_inner=lr, rescale=rescale, update_interval=interval
    )
    balancer = Balancer(config, FlatLayout.__new__(FlatLayout), [], ["any"])
    state = {"angles": angles[None], "counter": torch.tensor(interval - 1)}
    decision = balancer._decide(gram[None], None, state, len(angles), None)
    coefficients = torch.cat([decision.weights, decision.direction])
    return SimpleNamespace(**decision.report, coefficients=coefficients, state_angles=decision.state["angles"][0])


def solve(rows, direction, angles, rotate=True, **options):
    """The Gram form and the vectors that its coefficients stand for."""
    stack = torch.cat([rows, direction[None]])
    rotation = decide(stack @ stack.t(), angles, rotate, **{**DEFAULTS, **options})
    new = rotation.coefficients[1] @ stack
    return rotation, rotation.coefficients[0] @ torch.cat([rows, new[None]]), new


def agree(rows, direction, angles, tolerance=1e-10, **options):
    rotation, update, new = solve(rows, direction, angles, **options)
    oracle = {**DEFAULTS, **options}
    wanted, wanted_new, wanted_angles = direct_balance(rows, direction, angles, **oracle)
    close = {"rtol": 0, "atol": tolerance}
    torch.testing.assert_close(update, wanted, rtol=tolerance, atol=tolerance * (1 + wanted.norm().item()))
    torch.testing.assert_close(new, wanted_new, **close)
    torch.testing.assert_close(rotation.state_angles, wanted_angles, **close)
    torch.testing.assert_close(rotation.update_norm, wanted.norm(), rtol=1e-7, atol=1e-7)
    return rotation, update, new


def unit(vector):
    return vector / vector.norm()


@given(
    n=st.integers(1, 6),
    size=st.integers(2, 30),
    seed=st.integers(0, 10**6),
    lambd=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    lr=st.sampled_from([0.05, 0.2, 2.0]),
    steps=st.sampled_from([0, 1, 3, 10]),
    mu=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    history=st.booleans(),
    spread=st.sampled_from([0.2, 1.0, 5.0]),
)
def test_equals_the_direct_form(n, size, seed, lambd, lr, steps, mu, history, spread):
    rows = double(1, size, seed=seed) + spread * double(n, size, seed=seed + 1)
    rows *= 10.0 ** torch.arange(n, dtype=torch.float64)[:, None]
    direction = unit(double(size, seed=seed + 2)) * history
    angles = torch.linspace(0, 1.5, n, dtype=torch.float64)
    rotation, _, _ = solve(rows, direction, angles, mu=mu)
    # Beside a threshold the two forms may fall on different sides of it.
    assume(((rotation.projections.abs() - ALIGNED).abs() > 1e-9).all())
    agree(rows, direction, angles, mu=mu, lambd=lambd, lr=lr, steps=steps)


@pytest.mark.parametrize("cosine", [1.0, 0.9995, 0.9985, -0.9985, -0.9995, -1.0])
def test_equals_the_direct_form_near_the_direction_and_its_opposite(cosine):
    d, side = torch.eye(5, dtype=torch.float64)[:2]
    task = cosine * d + math.sqrt(1 - cosine**2) * side
    rows = torch.stack([task, d + 0.4 * side, unit(double(5))])
    rotation, _, _ = agree(rows, d, torch.full((3,), 0.2, dtype=torch.float64), tolerance=1e-9, mu=1.0)
    torch.testing.assert_close(rotation.projections[0].item(), cosine)


@pytest.mark.parametrize("rescale", ["none", "mean", "rms"])
@pytest.mark.parametrize("rotate", [True, False])
def test_rescaling_and_idle_tasks_equal_the_direct_form(rescale, rotate):
    rows, angles = double(4, 50) * torch.tensor([[1.0], [0.0], [30.0], [0.02]]), torch.rand(4, dtype=torch.float64)
    rotation, update, _ = solve(rows, unit(double(50, seed=1)), angles, rotate, rescale=rescale)
    wanted, _, wanted_angles = direct_balance(rows, unit(double(50, seed=1)), angles, rotate, rescale=rescale)
    torch.testing.assert_close(update, wanted, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(rotation.state_angles, wanted_angles, rtol=0, atol=1e-11)
    assert rotation.state_angles[1] == angles[1], "an idle task keeps its angle for its return"
    assert rotation.angles[1] == 0


def test_a_dead_task_is_no_ghost_voter():
    """Defect 19 of the published form: a zero gradient turned by pi/2 and contributed the whole direction."""
    direction = unit(double(40, seed=9))
    rows = double(3, 40)
    rows[2] = 0
    rotation, update, _ = agree(rows, direction, torch.zeros(3, dtype=torch.float64))
    _, alone, _ = agree(rows[:2], direction, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(update, alone, rtol=0, atol=1e-13)
    assert rotation.coefficients[:, 2].tolist() == [0, 0]


def test_a_lasting_opponent_of_the_consensus_fades_out():
    """Defect 20: tasks g, g, -g left all angles at 0. The opponent is turned out of the space, g keeps 2/3."""
    g = unit(double(12))
    rows, angles, direction = torch.stack([g, g, -g]), torch.zeros(3, dtype=torch.float64), torch.zeros_like(g)
    lengths = []
    for _ in range(60):
        rotation, update, direction = agree(rows, direction, angles, tolerance=1e-9)
        assert not rotation.cancelled
        assert rotation.angles[:2].tolist() == [0, 0]
        angles = rotation.state_angles
        lengths.append((update @ g).item())
    assert 1 / 3 < lengths[0] < 0.34
    assert lengths == sorted(lengths)
    assert lengths[-1] == pytest.approx(2 / 3, abs=1e-5)
    assert angles[2] == pytest.approx(LARGEST_ANGLE)


def test_tasks_that_agree_against_a_stale_direction_are_not_turned_away():
    g = unit(double(12))
    rotation, update, _ = agree(torch.stack([g, 2 * g, 3 * g]), -g, torch.full((3,), 0.3, dtype=torch.float64))
    assert (rotation.angles < 0.3).all()
    assert update @ g > 0.95


def test_a_pair_that_cancels_is_zero_without_history_and_turns_with_it():
    g = unit(double(12))
    rows, still = torch.stack([g, -g]), torch.zeros(2, dtype=torch.float64)
    rotation, update, new = agree(rows, torch.zeros_like(g), still)
    assert rotation.cancelled
    assert rotation.cosines[0, 1] == pytest.approx(-1)
    assert update.norm() == 0
    assert new.norm() == 0
    before = unit(double(12, seed=3))
    rotation, update, new = agree(rows, before, still)
    assert rotation.cancelled
    assert torch.equal(new, before), "without a consensus the direction stays, bit for bit"
    assert update.norm() > 1e-3
    rotation, update, _ = agree(rows, g, still)
    assert update @ g == pytest.approx((1 - rotation.angles[1].cos().item()) / 2)
    assert rotation.angles[1] > OPPOSED_ANGLE


def test_a_direction_that_would_vanish_stays():
    g = unit(double(12))
    rotation, _, new = agree(torch.stack([g, g]), -g, torch.zeros(2, dtype=torch.float64), mu=0.5)
    assert torch.equal(new, -g)
    assert rotation.finite


def test_one_task_gives_its_unit_gradient():
    rows = 7 * double(1, 30)
    for direction in (torch.zeros(30, dtype=torch.float64), unit(double(30, seed=1))):
        _, update, _ = agree(rows, direction, torch.full((1,), 0.4, dtype=torch.float64))
        torch.testing.assert_close(update, unit(rows[0]))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_matrix_decides_to_do_nothing(poison):
    stack, angles = double(4, 20), torch.rand(3, dtype=torch.float64)
    gram = stack @ stack.t()
    gram[1] = gram[:, 1] = poison
    rotation = decide(gram, angles, **DEFAULTS)
    assert not rotation.finite
    assert rotation.coefficients.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
    assert torch.equal(rotation.state_angles, angles)
    assert rotation.norms.isfinite().tolist() == [True, False, True], "the report says which task it was"
