"""The mixture's kernels: sticks, their divergence, density and responsibilities, each with its gradients."""

import itertools
import math

import mpmath
import pytest
import torch

from aime_kernels import expected_kumaraswamy_beta_kl, kumaraswamy_log_weights, mixture_log_density
from aime_kernels.dpgmm import density, divergence, sticks
from aime_kernels.dpgmm import op as operators
from aime_kernels.dpgmm.triton_density import mixture_fwd_kernel


def plain_weights(log_a, log_b, uniform):
    return sticks.stick_breaking_log_weights(*sticks.kumaraswamy_log_sticks(log_a, log_b, uniform))


def with_gradients(function, inputs, wanted):
    """Outputs, and the gradients of a fixed random weighting of them."""
    leaves = [x.detach().clone().requires_grad_(i < wanted) for i, x in enumerate(inputs)]
    out = function(*leaves)
    outs = [out] if isinstance(out, torch.Tensor) else list(out)
    generator = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).sum() for o in outs)
    return [*outs, *torch.autograd.grad(loss, leaves[:wanted])]


def assert_as_good_as_the_reference(kernel, plain, inputs, wanted, rtol, atol):
    """float32 kernel against the float64 reference, outputs and gradients."""
    exact = with_gradients(plain, [x.double() for x in inputs], wanted)
    for found, expected in zip(with_gradients(kernel, inputs, wanted), exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol * (1 + expected.abs().max().item()))


def stick_inputs(rows, count, device, dtype=torch.float32):
    log_a, log_b = torch.randn(2, rows, count, dtype=dtype)
    return [x.to(device) for x in (log_a, log_b, torch.rand(rows, count, dtype=dtype))]


def kl_inputs(rows, count, device, dtype=torch.float32):
    log_a, log_b = torch.randn(2, rows, count, dtype=dtype)
    mean, mean_log = torch.rand(rows, 1, dtype=dtype) + 0.5, torch.randn(rows, 1, dtype=dtype)
    return [x.to(device) for x in (log_a, log_b, mean, mean_log)]


def mixture_inputs(rows, samples, components, dim, device, dtype=torch.float32):
    z, means = torch.randn(rows, samples, dim, dtype=dtype), torch.randn(rows, components, dim, dtype=dtype)
    log_pi = torch.randn(rows, components, dtype=dtype).log_softmax(-1)
    return [x.to(device) for x in (z, log_pi, means, torch.randn(rows, components, dim, dtype=dtype))]


@pytest.mark.parametrize("rows, count", [(1, 1), (33, 14), (40, 7), (5, 31)])
def test_weights_and_gradients(rows, count, device):
    inputs = stick_inputs(rows, count, device)
    assert_as_good_as_the_reference(kumaraswamy_log_weights, plain_weights, inputs, 2, 2e-5, 2e-6)
    total = kumaraswamy_log_weights(*inputs).double().logsumexp(-1)
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-5, rtol=0)


def test_weights_at_the_ends(device):
    ends = [0.0, 1e-7, 1e-3, 0.5, 1 - 1e-7, 1.0]
    logs = [-4.6, -1.0, 0.0, 1.0, 4.6]
    grid = torch.tensor(list(itertools.product(logs, logs, ends)), device=device)
    inputs = [x[:, None].contiguous() for x in grid.unbind(1)]
    eps = torch.finfo(torch.float32).eps
    clamped = inputs[2].clamp(eps / 2, 1 - eps / 2)
    exact = with_gradients(plain_weights, [x.double() for x in (*inputs[:2], clamped)], 2)
    for found, expected in zip(with_gradients(kumaraswamy_log_weights, inputs, 2), exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    far = torch.tensor(list(itertools.product([-30.0, 30.0], [-30.0, 30.0], ends)), device=device)
    for found in with_gradients(kumaraswamy_log_weights, [x[:, None].contiguous() for x in far.unbind(1)], 2):
        assert found.isfinite().all()


@pytest.mark.parametrize("rows, count", [(1, 1), (33, 14), (3, 31)])
def test_divergence_and_gradients(rows, count, device):
    inputs = kl_inputs(rows, count, device)
    plain = divergence.expected_kumaraswamy_beta_kl
    assert_as_good_as_the_reference(expected_kumaraswamy_beta_kl, plain, inputs, 4, 2e-5, 2e-6)


def test_divergence_far_out(device):
    logs = torch.tensor(list(itertools.product([-3.9, -1.0, 0.0, 2.0, 4.6], repeat=2)), device=device)
    moments = torch.full((25, 1), 2.0, device=device), torch.full((25, 1), 0.5, device=device)
    inputs = [logs[:, :1], logs[:, 1:], *moments]
    plain = divergence.expected_kumaraswamy_beta_kl
    assert_as_good_as_the_reference(expected_kumaraswamy_beta_kl, plain, inputs, 4, 1e-4, 1e-5)
    inputs[0], inputs[1] = (4.3 * logs).chunk(2, 1)
    assert all(found.isfinite().all() for found in with_gradients(expected_kumaraswamy_beta_kl, inputs, 4))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 10, 15, 36), (2, 3, 5, 7), (2, 1, 32, 64)])
def test_density_and_gradients(shape, device):
    inputs = mixture_inputs(*shape, device)
    assert_as_good_as_the_reference(mixture_log_density, density.mixture_log_density, inputs, 4, 3e-5, 1e-6)


def test_density_where_digits_are_lost_and_weights_are_zero(device):
    means = torch.full((2, 3, 36), 5.0, device=device)
    z, log_vars = means[:, :2] + 0.05 * torch.randn(2, 2, 36).to(device), torch.full_like(means, -6.0)
    log_pi = torch.tensor([[0.0, -math.inf, -80.0], [-math.inf, math.log(0.5), math.log(0.5)]], device=device)
    found = mixture_log_density(z, log_pi, means, log_vars)
    exact = density.mixture_log_density(*(x.double() for x in (z, log_pi, means, log_vars)))
    torch.testing.assert_close(found[0].double(), exact[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1].exp().double(), exact[1].exp(), atol=1e-5, rtol=0)


def test_views_are_read_through_their_strides(device):
    z, log_pi, means, log_vars = mixture_inputs(3, 4, 5, 8, device)
    views = z.transpose(0, 1).contiguous().transpose(0, 1), log_pi, *torch.stack([means, log_vars], -1).unbind(-1)
    plain = mixture_log_density(z, log_pi, means, log_vars)
    assert all(torch.equal(a, b) for a, b in zip(mixture_log_density(*views), plain, strict=True))
    for function, inputs in [
        (kumaraswamy_log_weights, stick_inputs(4, 3, device)),
        (expected_kumaraswamy_beta_kl, kl_inputs(4, 3, device)),
    ]:
        strided = [x.repeat_interleave(2, 0)[::2] for x in inputs]
        assert not strided[0].is_contiguous() and torch.equal(function(*strided), function(*inputs))


@pytest.mark.slow
def test_a_row_beyond_32_bits(device, tmp_path, monkeypatch):
    """One program at the place of the last of a million, which the interpreter could not run one by one."""
    if device != "cpu":
        pytest.skip("sets the program's number in the interpreter")
    from triton.runtime.interpreter import interpreter_builder as builder

    rows, components, dim = 2**20 + 2, 32, 64
    means, log_vars = (
        torch.from_file(str(tmp_path / name), shared=True, size=rows * components * dim).view(rows, components, dim)
        for name in ("means", "log_vars")  # sparse files: they take no room on the disk
    )
    near = mixture_inputs(1, 1, components, dim, device)
    means[-1], log_vars[-1] = near[2][0], near[3][0]
    z, log_pi = torch.zeros(rows, 1, dim), torch.zeros(rows, components)
    z[-1], log_pi[-1] = near[0][0], near[1][0]
    log_prob, log_r = torch.zeros(rows, 1), torch.zeros(rows, 1, components)
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: setattr(builder, "grid_idx", (rows - 1, y, z)))
    sizes = {"K": components, "D": dim}
    mixture_fwd_kernel[(1,)](z, log_pi, means, log_vars, log_prob, log_r, 1, **sizes)
    expected = density.mixture_log_density(*near)
    torch.testing.assert_close((log_prob[-1:], log_r[-1:]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows, samples", [(0, 2), (2, 0)])
def test_nothing_in_is_nothing_out(rows, samples, device):
    found = with_gradients(mixture_log_density, mixture_inputs(rows, samples, 3, 4, device), 4)
    assert found[0].shape == (rows, samples) and all((x == 0).all() for x in found[2:])
    assert kumaraswamy_log_weights(*stick_inputs(0, 3, device)).shape == (0, 4)
    assert expected_kumaraswamy_beta_kl(*kl_inputs(0, 3, device)).shape == (0, 3)


def test_gradients_of_the_kernels_in_double_precision(device):
    kw = {"dtype": torch.float64}
    for function, inputs, wanted in [
        (kumaraswamy_log_weights, stick_inputs(2, 3, device, **kw), 2),
        (expected_kumaraswamy_beta_kl, kl_inputs(2, 2, device, **kw), 4),
        (mixture_log_density, mixture_inputs(2, 2, 3, 4, device, **kw), 4),
    ]:
        leaves = [x.requires_grad_(i < wanted) for i, x in enumerate(inputs)]
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_double_precision_equals_the_reference(device):
    for kernel, plain, inputs, wanted in [
        (kumaraswamy_log_weights, plain_weights, stick_inputs(5, 6, device, torch.float64), 2),
        (
            expected_kumaraswamy_beta_kl,
            divergence.expected_kumaraswamy_beta_kl,
            kl_inputs(5, 6, device, torch.float64),
            4,
        ),
        (mixture_log_density, density.mixture_log_density, mixture_inputs(2, 3, 5, 7, device, torch.float64), 4),
    ]:
        expected = with_gradients(plain, inputs, wanted)
        for one, other in zip(with_gradients(kernel, inputs, wanted), expected, strict=True):
            # torch's own trigamma is good to 1e-8 only.
            limit = 1e-7 if plain is divergence.expected_kumaraswamy_beta_kl else 1e-11
            torch.testing.assert_close(one, other, rtol=limit, atol=limit)


def test_polygammas_in_full_precision(device):
    """Where b alone is left of the divergence's gradient: a = 1/2, no quadrature (E alpha = 1)."""
    log_b = torch.linspace(-4, 5, 31, dtype=torch.float64, device=device)[None].requires_grad_()
    one = torch.ones(1, 1, dtype=torch.float64, device=device)
    log_a = torch.full_like(log_b, -math.log(2.0))
    kl = expected_kumaraswamy_beta_kl(log_a.detach(), log_b, one, one)
    (slope,) = torch.autograd.grad(kl.sum(), log_b)
    for lb, value, derivative in zip(log_b[0].tolist(), kl[0].tolist(), slope[0].tolist(), strict=True):
        b = math.exp(lb)
        exact = lb - math.log(2) + float(mpmath.digamma(1 + b) + mpmath.euler) - (1 - 1 / b) - 1
        assert value == pytest.approx(exact, rel=1e-12, abs=1e-12)
        assert derivative == pytest.approx(1 + b * float(mpmath.polygamma(1, 1 + b)) - 1 / b, rel=1e-11, abs=1e-11)


def test_what_the_kernels_are_not_built_for_is_refused(device, monkeypatch):
    with pytest.raises(ValueError, match="32 sticks, built for 1 to 31"):
        kumaraswamy_log_weights(*stick_inputs(2, 32, device))
    with pytest.raises(ValueError, match="bfloat16"):
        kumaraswamy_log_weights(*(x.bfloat16() for x in stick_inputs(2, 3, device)))
    log_a, log_b, uniform = stick_inputs(2, 3, device)
    with pytest.raises(ValueError, match="uniform draws need a gradient"):
        kumaraswamy_log_weights(log_a, log_b, uniform.requires_grad_())
    with pytest.raises(ValueError, match="moments must be"):
        expected_kumaraswamy_beta_kl(log_a, log_b, log_a, log_a)
    wide = mixture_inputs(1, 1, 40, 80, device)
    with pytest.raises(ValueError, match="40 components of 80"):
        mixture_log_density(*wide)
    with pytest.raises(ValueError, match="32 sticks, built for 1 to 31"):
        expected_kumaraswamy_beta_kl(*kl_inputs(2, 32, device))
    for call, inputs in [
        (kumaraswamy_log_weights, stick_inputs(2, 3, device)),
        (expected_kumaraswamy_beta_kl, kl_inputs(2, 3, device)),
        (mixture_log_density, mixture_inputs(1, 1, 2, 3, device)),
    ]:
        with pytest.raises(ValueError, match=r"tensors on .*meta"):
            call(inputs[0], inputs[1].to("meta"), *inputs[2:])
        with pytest.raises(ValueError, match="float64"):
            call(inputs[0], inputs[1].double(), *inputs[2:])
    with pytest.raises(ValueError, match="do not fit"):
        mixture_log_density(wide[0], wide[1][:, :3], *(x[:, :4] for x in wide[2:]))
    monkeypatch.setenv("AIME_KERNELS", "auto")
    for one, other in zip(mixture_log_density(*wide), density.mixture_log_density(*wide), strict=True):
        assert torch.equal(one, other)


def test_operators_and_a_graph_around_them(device):
    weights, kl, mixture = stick_inputs(2, 3, device), kl_inputs(2, 3, device), mixture_inputs(2, 2, 4, 5, device)
    flat_kl = kl[0], kl[1], kl[2][:, 0], kl[3][:, 0]
    for operator, inputs, wanted in [
        (operators.stick_weights, weights, 2),
        (operators.stick_weights_backward, [*weights, torch.randn(2, 4).to(device)], 0),
        (operators.stick_kl, flat_kl, 4),
        (operators.stick_kl_backward, [*flat_kl[:3], weights[0]], 0),
        (operators.mixture, mixture, 4),
    ]:
        leaves = [x.detach().clone().requires_grad_(i < wanted) for i, x in enumerate(inputs)]
        torch.library.opcheck(operator, tuple(leaves))

    def all_three(*inputs):
        log_prob, log_r = mixture_log_density(inputs[0], kumaraswamy_log_weights(*inputs[3:6]), *inputs[1:3])
        return log_prob.sum() + log_r.exp().sum() + expected_kumaraswamy_beta_kl(*inputs[3:5], *inputs[6:]).sum()

    inputs = [mixture[0], *mixture[2:], *stick_inputs(2, 3, device), *kl[2:]]
    compiled = torch.compile(all_three, fullgraph=True, backend="aot_eager")
    for one, other in zip(with_gradients(compiled, inputs, 5), with_gradients(all_three, inputs, 5), strict=True):
        torch.testing.assert_close(one, other)
