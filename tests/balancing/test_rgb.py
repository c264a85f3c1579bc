"""The Gram form against the direct form in float64, the edge cases, and the invariances."""

import numpy as np
import pytest
import torch
from direct import direct_balance

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
    angles, direction = rgb._balancer.state["angles"].clone(), join(rgb.direction).clone()
    rows = gradients(3, seed=1)
    rows[1, 17] = poison
    update, report = balanced(rgb, rows)
    assert not report.finite
    assert update.eq(0).all()
    assert torch.equal(rgb._balancer.state["angles"], angles)
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


def test_the_update_is_never_longer_than_one():
    assert balanced(RGB(), 1e3 * gradients(5))[0].norm() <= 1 + 1e-12


@pytest.mark.parametrize("limit", [1e-3, 0.5, 5.0])
def test_an_update_clipped_while_it_is_made_is_the_update_clipped_after(limit):
    plain, clipping = RGB(), RGB()
    for step in range(3):
        rows = gradients(3, seed=step)
        whole, report = balanced(plain, [row.clone() for row in rows])
        found, clipped = balanced(clipping, [row.clone() for row in rows], max_norm=limit)
        torch.testing.assert_close(report.update_norm, whole.norm(), rtol=1e-12, atol=0)
        torch.testing.assert_close(clipped.update_norm, report.update_norm, rtol=1e-12, atol=0)
        torch.testing.assert_close(found, whole * min(1.0, limit / (whole.norm().item() + 1e-6)), rtol=1e-11, atol=0)
        torch.testing.assert_close(join(clipping.direction), join(plain.direction), rtol=0, atol=0)


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


def test_bad_rows_and_options_are_refused():
    row = [torch.ones(3)]
    for call, words in [
        (lambda rgb: rgb.balance([]), "0 task gradients"),
        (lambda rgb: rgb.balance([row, [*row, None]]), "mark a missing gradient"),
        (lambda rgb: rgb.balance([row], momentum=1), "unknown option 'balancing.momentum'"),
        (lambda rgb: rgb.balance([row], alpha_steps=-1), "alpha_steps"),
        (lambda rgb: rgb.backward([torch.ones(())]), "get_share_params"),
        (lambda rgb: rgb.load_state_dict({"weights": torch.ones(1)}), "use that solver"),
    ]:
        with pytest.raises(UserError, match=words):
            call(RGB())
    rgb = RGB(task_num=2)
    with pytest.raises(UserError, match="task_num is 2"):
        rgb.balance([row])
    rgb.balance([row, row])
    with pytest.raises(UserError, match="with other shapes; use one RGB object"):
        rgb.balance([[torch.ones(4)], [torch.ones(4)]])
    with pytest.raises(UserError, match="one RGB object"):
        rgb.balance([[*row, None], [*row, None]])
    rgb.rep_grad, rgb.get_share_params = True, lambda: [torch.nn.Parameter(torch.ones(1))]
    with pytest.raises(UserError, match="rep_grad"):
        rgb.backward([torch.ones(()), torch.ones(())])
    with pytest.raises(UserError, match="rescale"):
        RGB(rescale="max")


def test_a_poisoned_shard_of_another_rank_stops_this_rank_too():
    rgb = RGB()
    balanced(rgb, gradients(3))
    before = [
        tensor.clone()
        for tensor in (rgb._balancer.state["angles"], rgb._balancer.state["counter"], join(rgb.direction))
    ]
    update, report = balanced(rgb, gradients(3, seed=1), reduce=lambda sums: sums + torch.nan * torch.eye(len(sums)))
    assert not report.finite
    assert update.eq(0).all()
    after = (rgb._balancer.state["angles"], rgb._balancer.state["counter"], join(rgb.direction))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert balanced(rgb, gradients(3, seed=1))[1].finite


def test_a_poisoned_first_step_leaves_the_next_one_first():
    rgb = RGB()
    balanced(rgb, torch.nan * gradients(3))
    assert torch.equal(balanced(rgb, gradients(3))[0], balanced(RGB(), gradients(3))[0])


def test_options_override_attributes_for_one_call():
    rows = gradients(3)
    options = {"mu": 0.2, "lambd": 0.1, "alpha_steps": 7, "lr_inner": 0.4, "update_interval": 1}
    rgb, other = RGB(), RGB(**options)
    balanced(rgb, rows), balanced(other, rows, mu=0.9, lambd=1.0, alpha_steps=3, lr_inner=0.2)
    assert torch.equal(balanced(rgb, gradients(3, seed=1), **options)[0], balanced(other, gradients(3, seed=1))[0])
    assert rgb.mu == 0.9


def test_low_precision_gradients_are_balanced_in_float32():
    rows = gradients(3, dtype=torch.float32).to(torch.bfloat16)
    update, _ = balanced(RGB(), rows)
    wanted, _ = balanced(RGB(), rows.double())
    assert update.dtype == torch.bfloat16
    torch.testing.assert_close(update.double(), wanted, rtol=1e-2, atol=1e-5)


def test_a_parameter_no_task_reaches_still_follows_the_direction():
    rows = gradients(2)
    rgb, zeros = RGB(), RGB()
    balanced(rgb, rows), balanced(zeros, rows)
    parts = [split(row) for row in gradients(2, seed=1)]
    for part in parts:
        part[1] = None
    filled = [[torch.zeros(5, dtype=torch.float64) if t is None else t.clone() for t in part] for part in parts]
    update = rgb.balance(parts).update
    torch.testing.assert_close(join(update), join(zeros.balance(filled).update), rtol=1e-12, atol=1e-14)
    assert update[1].norm() > 0


def test_float32_rows_match_float64_rows_to_rounding():
    rgb, exact = RGB(), RGB()
    for seed in range(5):
        rows = gradients(4, seed=seed, dtype=torch.float32)
        update, _ = balanced(rgb, rows)
        wanted, _ = balanced(exact, rows.double())
        torch.testing.assert_close(update.double(), wanted, rtol=0, atol=1e-6 * wanted.norm().item())


def test_nothing_is_read_on_the_host(monkeypatch):
    def refuse(self, *args):
        raise AssertionError("read on the host")

    rgb = RGB(update_interval=2)
    rows = [split(row) for row in gradients(3)]
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    rgb.balance(rows)
    rgb.balance(rows)


def test_attribute_style_equals_the_direct_form_on_shared_and_missing_gradients():
    torch.manual_seed(1)
    a, b = (torch.nn.Parameter(torch.randn(4, 5, dtype=torch.float64)) for _ in range(2))
    c = torch.nn.Parameter(torch.randn(3, dtype=torch.float64))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    x = torch.randn(5, dtype=torch.float64)

    def losses():
        # `a + b` hands one tensor to both, `sum` an expanded scalar; the last loss depends on nothing.
        return [(a + b).sum(), ((a + b) @ x).square().sum(), (a * b).sum() + c.square().sum(), torch.zeros(())]

    dense = []
    for loss in losses()[:3]:
        parts = torch.autograd.grad(loss, [a, b, c], allow_unused=True)
        dense.append(join([torch.zeros_like(p) if g is None else g for p, g in zip([a, b, c], parts, strict=True)]))
    dense.append(torch.zeros_like(dense[0]))
    wanted, _, _ = direct_balance(torch.stack(dense), torch.zeros_like(dense[0]), torch.zeros(4, dtype=torch.float64))
    rgb = RGB(get_share_params=lambda: [a, frozen, b, c])
    a.grad = torch.full_like(a, 5.0)
    assert rgb.backward(losses()).tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(join([p.grad for p in (a, b, c)]), wanted, rtol=1e-10, atol=1e-12)
    assert frozen.grad is None
    assert rgb.report.active.tolist() == [True, True, True, False]
    assert rgb.backward(torch.stack(losses()), mu=0.5).shape == (4,)
