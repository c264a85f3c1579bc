"""Sticks, weights, densities and divergences against integration, inverse CDFs and torch.distributions."""

import itertools
import math

import mpmath
import pytest
import torch
from scipy import integrate, special
from torch import distributions as D

from aime_kernels import (
    expected_kumaraswamy_beta_kl,
    gamma_kl,
    gaussian_log_density,
    kumaraswamy_log_sticks,
    mixture_log_density,
    stick_breaking_log_weights,
)
from aime_kernels.dpgmm.divergence import minus_expected_log_remainder

SHAPES = [0.01, 0.3, 1.0, 100.0]
UNIFORMS = [1e-7, 1e-3, 0.5, 1 - 1e-7]


def exact_sticks(log_a, log_b, uniform):
    """The inverse CDF in enough decimal digits that 1 - v is not rounded away."""
    exponent = mpmath.log1p(-uniform) / mpmath.exp(log_b)
    with mpmath.workdps(60 if exponent > -50 else 1500):
        log_v = mpmath.log(1 - mpmath.exp(exponent)) / mpmath.exp(log_a)
        return log_v, mpmath.log(1 - mpmath.exp(log_v))


@pytest.mark.parametrize("dtype, rtol, smallest", [(torch.float64, 1e-12, 1e-300), (torch.float32, 3e-5, 1e-36)])
def test_sticks_equal_the_inverse_cdf_to_relative_precision(dtype, rtol, smallest):
    grid = torch.tensor(list(itertools.product(SHAPES, SHAPES, UNIFORMS)), dtype=dtype)
    log_a, log_b, uniform = grid[:, 0].log(), grid[:, 1].log(), grid[:, 2]
    found = kumaraswamy_log_sticks(log_a, log_b, uniform)
    for row in range(len(grid)):
        exact = exact_sticks(*(mpmath.mpf(x[row].item()) for x in (log_a, log_b, uniform)))
        for value, truth in zip(found, exact, strict=True):
            if abs(truth) > smallest:
                assert value[row].item() == pytest.approx(float(truth), rel=rtol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sticks_and_their_gradients_are_finite_at_the_ends(dtype):
    ends = [0.0, 1e-30, 1e-7, 1 - 1e-7, 1.0]
    logs = [-30.0, math.log(0.01), 0.0, math.log(100.0), 30.0]
    grid = torch.tensor(list(itertools.product(logs, logs, ends)), dtype=dtype)
    log_a, log_b = grid[:, 0].clone().requires_grad_(), grid[:, 1].clone().requires_grad_()
    log_pi = stick_breaking_log_weights(*(x[:, None] for x in kumaraswamy_log_sticks(log_a, log_b, grid[:, 2])))
    log_pi.clamp_min(-1e30).sum().backward()
    for tensor in (log_pi, log_a.grad, log_b.grad):
        assert tensor.isfinite().all()


def test_stick_gradients():
    log_a, log_b = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    uniform = torch.rand(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: kumaraswamy_log_sticks(a, b, uniform), (log_a, log_b))


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_weights_sum_to_one(dtype, atol, spread):
    log_a, log_b = spread * torch.randn(2, 7, 3, 14, dtype=dtype)
    log_pi = stick_breaking_log_weights(*kumaraswamy_log_sticks(log_a, log_b, torch.rand(7, 3, 14, dtype=dtype)))
    assert log_pi.shape == (7, 3, 15)
    torch.testing.assert_close(log_pi.exp().sum(-1), torch.ones(7, 3, dtype=dtype), atol=atol, rtol=0)


def test_weights_are_the_product_of_remainders():
    v = torch.tensor([0.5, 0.25, 0.1], dtype=torch.float64)
    expected = torch.tensor([0.5, 0.5 * 0.25, 0.5 * 0.75 * 0.1, 0.5 * 0.75 * 0.9], dtype=torch.float64)
    torch.testing.assert_close(stick_breaking_log_weights(v.log(), (-v).log1p()).exp(), expected)


def mixture_inputs(n, s, k, d, dtype=torch.float64):
    z, means = 2 * torch.randn(n, s, d, dtype=dtype), 2 * torch.randn(n, k, d, dtype=dtype)
    return z, torch.randn(n, k, dtype=dtype).log_softmax(-1), means, torch.randn(n, k, d, dtype=dtype).clamp(-6, 4)


@pytest.mark.parametrize("shape", [(5, 1, 15, 36), (3, 4, 1, 1), (1, 7, 2, 3)])
def test_mixture_density_equals_torch_distributions(shape):
    z, log_pi, means, log_vars = mixture_inputs(*shape)
    components = D.Independent(D.Normal(means, (0.5 * log_vars).exp()), 1)
    mixture = D.MixtureSameFamily(D.Categorical(logits=log_pi), components)
    log_prob, log_r = mixture_log_density(z, log_pi, means, log_vars)
    torch.testing.assert_close(log_prob, mixture.log_prob(z.transpose(0, 1)).T)
    torch.testing.assert_close(log_r.exp().sum(-1), torch.ones_like(log_prob))
    joint = log_pi[:, None] + gaussian_log_density(z[:, :, None], means[:, None], log_vars[:, None])
    torch.testing.assert_close(log_r, joint.log_softmax(-1))


def test_mixture_density_gradients():
    inputs = [x.detach().requires_grad_() for x in mixture_inputs(2, 3, 4, 5)]
    assert torch.autograd.gradcheck(mixture_log_density, inputs)


def test_mixture_density_keeps_float32_precision_near_a_narrow_far_component():
    means = torch.full((1, 1, 36), 5.0, dtype=torch.float64)
    z, log_vars = means + 0.05 * torch.randn(1, 1, 36, dtype=torch.float64), torch.full_like(means, -6.0)
    inputs = [x.float() for x in (z, torch.zeros(1, 1), means, log_vars)]
    exact, _ = mixture_log_density(*(x.double() for x in inputs))
    torch.testing.assert_close(mixture_log_density(*inputs)[0].double(), exact, atol=1e-4, rtol=0)


def kumaraswamy_expectation(function, a, b):
    """E[function(log v, log(1 - v))] by adaptive integration over the logistic of the uniform variable."""

    def integrand(x):
        log_remaining = -math.log1p(math.exp(x))  # log(1 - U), U = sigmoid(x)
        t = log_remaining / b
        log_v = (math.log(-math.expm1(t)) if t > -0.7 else math.log1p(-math.exp(t))) / a
        # 1 - v below rounding: -log v = e^t / a to first order.
        log_1mv = math.log(-math.expm1(log_v)) if log_v < -1e-14 else t - math.log(a)
        return function(log_v, log_1mv) * special.expit(x) * special.expit(-x)

    return integrate.quad(integrand, -40, 40, limit=400, epsabs=1e-12, epsrel=1e-10)[0]


@pytest.mark.parametrize("a, b", list(itertools.product([0.05, 0.4, 1.0, 6.0, 50.0], repeat=2)))
def test_stick_kl_equals_numerical_integration(a, b):
    mean, mean_log = 3.0 / 0.7, special.digamma(3.0) - math.log(0.7)

    def log_ratio(log_v, log_1mv):
        log_1mva = math.log(-math.expm1(a * log_v)) if a * log_v < -1e-14 else math.log(a) + log_1mv
        log_q = math.log(a * b) + (a - 1) * log_v + (b - 1) * log_1mva
        return log_q - mean_log - (mean - 1) * log_1mv

    inputs = [torch.tensor(x, dtype=torch.float64) for x in (math.log(a), math.log(b), mean, mean_log)]
    exact = kumaraswamy_expectation(log_ratio, a, b)
    assert expected_kumaraswamy_beta_kl(*inputs).item() == pytest.approx(exact, rel=1e-4)
    assert expected_kumaraswamy_beta_kl(*(x.float() for x in inputs)).item() == pytest.approx(exact, rel=1e-4)


def test_stick_kl_of_equal_distributions_is_zero():
    alpha = torch.tensor([0.1, 1.0, 4.0, 30.0], dtype=torch.float64)
    kl = expected_kumaraswamy_beta_kl(torch.zeros(4, dtype=torch.float64), alpha.log(), alpha, alpha.log())
    torch.testing.assert_close(kl, torch.zeros_like(kl), atol=1e-5, rtol=0)


@pytest.mark.parametrize("a, b", list(itertools.product([0.02, 0.3, 1.0, 12.0, 100.0], repeat=2)))
def test_expected_log_remainder_over_the_stated_range(a, b):
    exact = kumaraswamy_expectation(lambda _, log_1mv: -log_1mv, a, b)
    found = minus_expected_log_remainder(*torch.tensor([a, b], dtype=torch.float64).log()).item()
    assert found == pytest.approx(exact, rel=1e-5, abs=1e-9)


def test_stick_kl_gradients():
    log_a, log_b = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    moments = torch.rand(2, 3, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b, m: expected_kumaraswamy_beta_kl(a, b, m[0], m[1]), (log_a, log_b, moments)
    )


def test_stick_kl_is_finite_far_outside_its_range():
    logs = torch.tensor(list(itertools.product([-20.0, -4.6, 0.0, 4.6, 20.0], repeat=2)), requires_grad=True)
    kl = expected_kumaraswamy_beta_kl(logs[:, 0], logs[:, 1], torch.tensor(2.0), torch.tensor(0.5))
    kl.sum().backward()
    assert kl.isfinite().all() and logs.grad.isfinite().all()


def test_gamma_kl_equals_torch_distributions():
    parameters = (4 * torch.randn(4, 3, 5, dtype=torch.float64).clamp(-1, 1)).exp().requires_grad_()
    expected = D.kl_divergence(D.Gamma(parameters[0], parameters[1]), D.Gamma(parameters[2], parameters[3]))
    torch.testing.assert_close(gamma_kl(*parameters), expected)
    assert torch.autograd.gradcheck(lambda p: gamma_kl(*p), (parameters,))


def test_gaussian_density_equals_torch_distributions():
    z, mean, log_var = torch.randn(3, 4, 2, 7, dtype=torch.float64)
    expected = D.Independent(D.Normal(mean, (0.5 * log_var).exp()), 1).log_prob(z)
    torch.testing.assert_close(gaussian_log_density(z, mean, log_var), expected)
