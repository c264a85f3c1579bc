"""The Gram form against the direct form in float64, the edge cases, and the invariances."""

import numpy as np
import pytest
import torch

from aime_fast.balancing.direct import direct_balance
from aime_fast.balancing.rgb import RGB
from aime_fast.errors import UserError

SHAPES = [(7, 3), (5,), (2, 3, 3, 3), (1,), (401,)]


def split(vector):
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    return [part.reshape(shape).clone() for part, shape in zip(vector.split(sizes), SHAPES, strict=True)]


def join(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def gradients(n, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    size = sum(int(np.prod(shape)) for shape in SHAPES)
    common = torch.randn(size, generator=generator, dtype=dtype)
    return torch.stack([0.5 * common + torch.randn(size, generator=generator, dtype=dtype) for _ in range(n)])


def balanced(rgb, rows, **options):
    report = rgb.balance([split(row) for row in rows], **options)
    return join(report.update), report


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("rescale", ["none", "mean", "rms"])
def test_gram_form_equals_direct_form_over_steps(n, rescale):
    rgb = RGB(rescale=rescale)
    direction, angles = torch.zeros_like(gradients(1)[0]), torch.zeros(n, dtype=torch.float64)
    for step in range(4):
        rows = gradients(n, seed=step) * 10.0 ** torch.arange(-2, n - 2, dtype=torch.float64)[:, None]
        wanted, direction, angles = direct_balance(rows, direction, angles, rescale=rescale)
        update, report = balanced(rgb, rows)
        torch.testing.assert_close(update, wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(report.angles, angles, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(join(rgb.direction), direction, rtol=1e-10, atol=1e-12)
        assert report.finite


def test_a_task_without_gradient_neither_votes_nor_turns():
    rows = gradients(3)
    with_idle = torch.stack([rows[0], torch.zeros_like(rows[0]), rows[1], rows[2]])
    plain, _ = balanced(RGB(), rows)
    idle, report = balanced(RGB(), with_idle)
    torch.testing.assert_close(idle, plain, rtol=1e-12, atol=1e-14)
    assert report.active.tolist() == [True, False, True, True]
    assert report.angles[1] == 0


def test_missing_tensors_count_as_zeros():
    rows = gradients(2)
    parts = [split(row) for row in rows]
    parts[0][1] = None
    parts[1][4] = None
    filled = [
        [
            torch.zeros(shape, dtype=torch.float64) if p is None else p.clone()
            for p, shape in zip(row, SHAPES, strict=True)
        ]
        for row in parts
    ]
    wanted = join(RGB().balance(filled).update)
    torch.testing.assert_close(join(RGB().balance(parts).update), wanted, rtol=1e-12, atol=1e-14)


def test_aligned_tasks_are_left_as_they_are():
    g = gradients(1)[0]
    update, report = balanced(RGB(), torch.stack([g, 3 * g]))
    torch.testing.assert_close(update, g / g.norm())
    assert report.angles.eq(0).all()


@pytest.mark.parametrize("signs", [(1, -1), (1, 1, -1), (1, -1, -1, 1)])
def test_opposed_tasks_give_a_finite_defined_update(signs):
    g = gradients(1)[0]
    rgb = RGB()
    update, report = balanced(rgb, torch.stack([sign * g for sign in signs]))
    assert update.isfinite().all()
    assert report.cosines.min() < -0.999
    assert bool(report.cancelled) == (sum(signs) == 0)
    if sum(signs):
        assert update.norm() > 1e-3
    balanced(rgb, gradients(len(signs)))
    later, _ = balanced(rgb, torch.stack([sign * g for sign in signs]))
    assert later.isfinite().all()
    assert later.norm() > 1e-6


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_gradient_gives_no_update_and_changes_nothing(poison):
    rgb = RGB()
    balanced(rgb, gradients(3))
    before = rgb.state_dict()
    angles, direction = rgb._angles.clone(), join(rgb.direction).clone()
    rows = gradients(3, seed=1)
    rows[1, 17] = poison
    update, report = balanced(rgb, rows)
    assert not report.finite
    assert update.eq(0).all()
    assert torch.equal(rgb._angles, angles)
    assert torch.equal(join(rgb.direction), direction)
    assert before.keys() == rgb.state_dict().keys()


def test_all_zero_gradients_give_a_zero_update():
    update, report = balanced(RGB(), torch.zeros_like(gradients(2)))
    assert report.finite
    assert update.eq(0).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scaling_a_loss_changes_nothing(scale):
    rows = gradients(3)
    plain, _ = balanced(RGB(), rows)
    rows[1] *= scale
    scaled, _ = balanced(RGB(), rows)
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-12)


def test_permuting_tasks_permutes_only_the_angles():
    rows, order = gradients(4), [2, 0, 3, 1]
    plain, report = balanced(RGB(), rows)
    permuted, other = balanced(RGB(), rows[order])
    torch.testing.assert_close(permuted, plain, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(other.angles, report.angles[order])


def test_shards_with_one_reduction_equal_the_whole():
    rows = gradients(3)
    whole, _ = balanced(RGB(), rows)
    half = rows.shape[1] // 2
    partial = []
    RGB().balance([[row[half:].clone()] for row in rows], reduce=lambda gram: partial.append(gram.clone()) or gram)
    calls = []

    def reduce(gram):
        calls.append(gram.shape)
        return gram + partial[0]

    report = RGB().balance([[row[:half].clone()] for row in rows], reduce=reduce)
    torch.testing.assert_close(report.update[0], whole[:half], rtol=1e-10, atol=1e-12)
    assert len(calls) == 1


def test_between_rotations_the_update_is_the_mean_unit_gradient():
    rgb = RGB(update_interval=2)
    updates = [balanced(rgb, gradients(3, seed=s))[0] for s in range(4)]
    means = [(rows / rows.norm(dim=1, keepdim=True)).mean(0) for rows in (gradients(3, seed=s) for s in range(4))]
    plain = [torch.allclose(u, m, rtol=1e-10) for u, m in zip(updates, means, strict=True)]
    assert sum(plain) == 2


def test_state_survives_a_round_trip():
    first, second = RGB(), RGB()
    balanced(first, gradients(3))
    second.load_state_dict(first.state_dict())
    assert torch.equal(balanced(first, gradients(3, seed=1))[0], balanced(second, gradients(3, seed=1))[0])


def test_the_update_is_never_longer_than_one():
    assert balanced(RGB(), 1e3 * gradients(5))[0].norm() <= 1 + 1e-12


def test_attribute_style_use():
    model = torch.nn.Linear(4, 3)
    x = torch.randn(8, 4)
    rgb = RGB()
    rgb.task_num, rgb.device, rgb.rep_grad = 3, "cpu", False
    rgb.get_share_params = lambda: model.parameters()
    out = model(x)
    assert rgb.backward([out[:, 0].square().mean(), out[:, 1].mean(), out.abs().mean()]).tolist() == [1, 1, 1]
    norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
    assert 0 < norm <= 1 + 1e-6


def test_bad_settings_are_refused():
    with pytest.raises(UserError):
        RGB(mu=2.0)
