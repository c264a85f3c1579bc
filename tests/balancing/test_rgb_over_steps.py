"""Runs of several steps: invariances that must last, state that must survive, and the memory that a step takes."""

import pytest
import torch
from direct import direct_balance
from test_rgb import balanced, gradients, join

from aime_fast.balancing.rgb import RGB

STEPS = 5


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def run(rgb, change=lambda rows, step: rows, steps=range(STEPS), n=3):
    """The updates of the steps, each [P], and the angles, each [n]."""
    told = [balanced(rgb, change(gradients(n, seed=step), step)) for step in steps]
    return torch.stack([update for update, _ in told]), torch.stack([report.angles for _, report in told])


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-11), (torch.float32, 2e-6)])
def test_scaling_a_loss_changes_no_step(factor, dtype, rtol):
    """Another task in every step, so that d and the angles are compared as well."""

    def scaled(rows, step):
        rows = rows.to(dtype)
        rows[step % 3] *= factor
        return rows

    plain, angles = run(RGB(), lambda rows, step: rows.to(dtype))
    updates, other_angles = run(RGB(), scaled)
    torch.testing.assert_close(updates, plain, rtol=0, atol=rtol)
    torch.testing.assert_close(other_angles, angles, rtol=0, atol=rtol)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scaling_a_loss_changes_no_gradient_of_a_network(factor):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    x, found = torch.randn(20, 6), []
    for scale in (1.0, factor):
        rgb = RGB(get_share_params=model.parameters)
        for _ in range(3):
            losses = model(x).square().mean(0)
            rgb.backward([losses[0], scale * losses[1], losses[2]])
        found.append(join([p.grad for p in model.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_permuting_tasks_permutes_the_angles_of_every_step():
    order = [2, 0, 3, 1]
    plain, angles = run(RGB(), n=4)
    permuted, other_angles = run(RGB(), lambda rows, _: rows[order], n=4)
    torch.testing.assert_close(permuted, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(other_angles, angles[:, order], rtol=0, atol=1e-11)
    assert angles.max() > 1e-2


def test_the_first_direction_is_the_mean_and_later_ones_a_blend():
    rgb = RGB(mu=0.7)
    first, second = (unit(unit(gradients(3, seed=seed)).mean(0)) for seed in (0, 1))
    balanced(rgb, gradients(3))
    torch.testing.assert_close(join(rgb.direction), first)
    balanced(rgb, gradients(3, seed=1))
    torch.testing.assert_close(join(rgb.direction), unit(0.7 * first + 0.3 * second))


def test_one_task_keeps_its_direction_through_a_history():
    rgb = RGB()
    for step in range(3):
        rows = gradients(1, seed=step)
        update, report = balanced(rgb, 1e4 * rows)
        torch.testing.assert_close(update, unit(rows)[0])
        assert report.angles.tolist() == [0]


def test_a_task_that_is_inactive_for_a_step_keeps_its_angle():
    rgb = RGB()
    run(rgb)
    before = rgb.state_dict()["angles"][0].clone()
    idle = gradients(3, seed=9)
    idle[1] = 0
    _, report = balanced(rgb, idle)
    after = rgb.state_dict()["angles"][0]
    assert report.angles[1] == 0
    assert after[1] == before[1] > 0
    assert (after != before).tolist() == [True, False, True]


@pytest.mark.parametrize("interval", [2, 3])
def test_between_rotations_the_update_is_the_mean_unit_gradient(interval):
    """The first step turns; on the others d moves as ever and the angles wait."""
    rgb, every = RGB(update_interval=interval), RGB()
    angles = torch.zeros(3, dtype=torch.float64)
    for step in range(2 * interval):
        rows = gradients(3, seed=step)
        update, report = balanced(rgb, rows)
        balanced(every, rows)
        torch.testing.assert_close(join(rgb.direction), join(every.direction), rtol=0, atol=1e-12)
        turned = not torch.allclose(update, unit(rows).mean(0), rtol=0, atol=1e-12)
        assert turned == bool(report.angles.any()) == (step % interval == 0)
        if not turned:
            assert torch.equal(rgb.state_dict()["angles"][0], angles)
        angles = rgb.state_dict()["angles"][0].clone()


@pytest.mark.parametrize("poisoned", [0, 1])
def test_a_skipped_step_does_not_count_for_the_interval(poisoned):
    """A step that is not finite, on the way to a rotation or at one, postpones what follows by itself alone."""
    rgb, clean = RGB(update_interval=2), RGB(update_interval=2)
    for step in range(4):
        if step == poisoned:
            broken = gradients(3, seed=77)
            broken[2, 5] = torch.nan
            assert not balanced(rgb, broken)[1].finite
        rows = gradients(3, seed=step)
        assert torch.equal(balanced(rgb, rows)[0], balanced(clean, rows)[0])


@pytest.mark.parametrize("pause", range(1, STEPS))
@pytest.mark.parametrize("options", [{}, {"update_interval": 3}], ids=str)
def test_state_survives_the_disk_at_any_step(tmp_path, pause, options):
    """What goes on from a file, loaded as checkpoints are, takes the very same steps."""

    def step_of(rgb, step):
        return balanced(rgb, gradients(3, seed=step))[0]

    whole, first, second = (RGB(**options) for _ in range(3))
    wanted = [step_of(whole, step) for step in range(STEPS)]
    for step in range(pause):
        step_of(first, step)
    torch.save(first.state_dict(), tmp_path / "rgb.pt")
    second.load_state_dict(torch.load(tmp_path / "rgb.pt", weights_only=True))
    for step in range(pause, STEPS):
        assert torch.equal(step_of(second, step), wanted[step])


def test_a_loaded_state_is_a_copy():
    first, second = RGB(), RGB()
    run(first)
    second.load_state_dict(first.state_dict())
    before = join(first.direction).clone()
    run(second)
    assert torch.equal(join(first.direction), before)


def test_shards_of_the_direction_joined_are_the_whole_direction():
    """One process goes on from the state of two and two from that of one: nothing but the layout of d changes."""
    cut = 173

    def shards(rows):
        """Both ranks' halves, balanced as ranks would: the sums of their Gram matrices."""
        parts = [rows[:, :cut].clone(), rows[:, cut:].clone()]
        grams = []
        for rgb, part in zip(pair, parts, strict=True):
            probe = RGB()
            probe.load_state_dict(rgb.state_dict())
            probe.balance([[row.clone()] for row in part], reduce=lambda gram: grams.append(gram) or gram)
        total = sum(grams)
        return torch.cat(
            [
                rgb.balance([[row.clone()] for row in part], reduce=lambda gram: total).update[0]
                for rgb, part in zip(pair, parts, strict=True)
            ]
        )

    def state_of(rgb, direction):
        return rgb.state_dict() | {"direction": direction}

    whole, pair = RGB(), (RGB(), RGB())
    for step in range(2):
        rows = gradients(3, seed=step)
        wanted = whole.balance([[row.clone()] for row in rows]).update[0]
        torch.testing.assert_close(shards(rows), wanted, rtol=0, atol=1e-13)
    joined = torch.cat([pair[0].direction[0], pair[1].direction[0]])
    torch.testing.assert_close(joined, whole.direction[0], rtol=0, atol=1e-13)
    one, (d,) = RGB(), whole.direction
    one.load_state_dict(state_of(pair[0], [joined]))
    pair[0].load_state_dict(state_of(whole, [d[:cut]]))
    pair[1].load_state_dict(state_of(whole, [d[cut:]]))
    rows = gradients(3, seed=2)
    wanted = whole.balance([[row.clone()] for row in rows]).update[0]
    torch.testing.assert_close(one.balance([[row.clone()] for row in rows]).update[0], wanted, rtol=0, atol=1e-13)
    torch.testing.assert_close(shards(rows), wanted, rtol=0, atol=1e-13)


def test_steps_of_every_kind_equal_the_direct_form():
    """Idle, opposed, aligned, cancelling, tiny and huge tasks in one run, against the oracle carried along."""
    g = gradients(3)
    steps = [
        g,
        torch.stack([g[0], torch.zeros_like(g[0]), g[2]]),
        torch.stack([g[0], -g[0], g[1]]),
        torch.stack([g[0], -g[0], torch.zeros_like(g[0])]),
        torch.stack([1e-12 * g[0], g[1], 1e12 * g[2]]),
        torch.stack([g[0], 2 * g[0], 3 * g[0]]),
        torch.zeros_like(g),
        torch.stack([torch.zeros_like(g[0]), g[1], torch.zeros_like(g[0])]),
        g,
    ]
    rgb, direction, angles = RGB(), torch.zeros_like(g[0]), torch.zeros(3, dtype=torch.float64)
    for rows in steps:
        wanted, direction, angles = direct_balance(rows, direction, angles)
        update, report = balanced(rgb, rows)
        torch.testing.assert_close(update, wanted, rtol=0, atol=1e-11)
        torch.testing.assert_close(join(rgb.direction), direction, rtol=0, atol=1e-12)
        torch.testing.assert_close(rgb.state_dict()["angles"][0], angles, rtol=0, atol=1e-9)
        assert report.finite


@pytest.mark.parametrize("pieces", [1, 300], ids=["one tensor", "300 tensors"])
def test_memory_beyond_the_rows_is_the_direction_and_bounded_scratch(peak_bytes, pieces):
    """No [n, P] temporary, nor even one of P: 3 rows of 8 M floats, 34 MB each."""
    size, n, scratch = 1 << 23, 3, 22_000_000
    row = 4 * size
    rows = [list(torch.randn(size).tensor_split(pieces)) for _ in range(n)]
    rgb = RGB()
    assert row <= peak_bytes(lambda: rgb.balance(rows)) < row + scratch  # the first call makes d
    assert peak_bytes(lambda: rgb.balance(rows)) < scratch < row


def test_the_measure_of_memory_sees_the_direct_form(peak_bytes):
    rows = torch.randn(3, 1 << 18)
    arguments = rows, torch.zeros(1 << 18), torch.zeros(3)
    assert peak_bytes(lambda: direct_balance(*arguments)) > 3 * rows.nbytes
