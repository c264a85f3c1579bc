"""Every KL term against numerical integration, a closed form, or a Monte Carlo estimate within five standard errors."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import distributions as D

from aime_fast.model.priors.mixture import MixtureDistribution
from aime_fast.model.priors.sticks import stick_divergences
from aime_fast.tasks import elbo, predictive

WEIGHTS = [0.5, 0.3, 0.2]
MEANS = [-1.5, 0.4, 3.0]
VARIANCES = [0.3, 1.2, 0.05]


def outputs_of(posterior, log_weights, means, log_vars, draws):
    """One frame: q = N(mean, var) over D dimensions, `draws` samples, and a mixture of K components."""
    mean, variance = posterior
    noise = torch.randn(1, 1, draws, len(mean), dtype=torch.float64)
    return SimpleNamespace(
        posterior_mean=mean[None, None],
        posterior_log_var=variance.log()[None, None],
        samples=mean + variance.sqrt() * noise,
        prior=MixtureDistribution(log_weights[None, None], means[None, None], log_vars[None, None]),
    )


def entropy(terms):
    return elbo.cluster_entropy(terms["usage"], terms["responsibility_entropy"])


def double(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("mean, variance", [(0.2, 0.5), (-1.5, 0.01), (8.0, 2.0)])
def test_kl_z_equals_numerical_integration(mean, variance):
    """In one dimension, where the divergence of a Gaussian and a mixture is an integral."""

    def density(x):
        return sum(w * stats.norm.pdf(x, m, math.sqrt(v)) for w, m, v in zip(WEIGHTS, MEANS, VARIANCES, strict=True))

    q = stats.norm(mean, math.sqrt(variance))
    ends = q.ppf(1e-14), q.ppf(1 - 1e-14)
    exact = integrate.quad(lambda x: q.pdf(x) * (q.logpdf(x) - math.log(density(x))), *ends, limit=200)[0]
    draws = 200_000
    outputs = outputs_of(
        (double([mean]), double([variance])),
        double(WEIGHTS).log(),
        double(MEANS)[:, None],
        double(VARIANCES).log()[:, None],
        draws,
    )
    z = outputs.samples.flatten().numpy()
    error = 5 * (q.logpdf(z) - np.log(density(z))).std() / math.sqrt(draws)
    found = elbo.latent_terms(outputs)
    assert found["kl_z"].item() == pytest.approx(exact, abs=error)
    assert elbo.above(found["kl_z"], 1e3) == 1e3


def test_kl_z_of_equal_components_is_that_of_two_gaussians():
    """Splitting one Gaussian into K equal components changes nothing: the sum over components is inside the log."""
    mean, variance, centre, width = torch.rand(4, 6, dtype=torch.float64) + 0.2
    exact = D.kl_divergence(D.Normal(mean, variance.sqrt()), D.Normal(centre, width.sqrt())).sum()
    many = outputs_of(
        (mean, variance), double(WEIGHTS).log(), centre.expand(3, 6), width.log().expand(3, 6), draws=100_000
    )
    found = elbo.latent_terms(many)
    torch.testing.assert_close(found["kl_z"], exact, rtol=0, atol=0.05)
    torch.testing.assert_close(found["usage"], double(WEIGHTS), check_dtype=False)
    assert entropy(found).abs() < 1e-6, "components that cannot be told apart carry no information"


def test_cluster_entropy_of_components_far_apart_is_the_entropy_of_their_use():
    centres = 100 * torch.arange(3, dtype=torch.float64)[:, None]
    outputs = [
        outputs_of((centres[k], double([1.0])), double(WEIGHTS).log(), centres, torch.zeros_like(centres), 50)
        for k in (0, 0, 1, 2)
    ]
    joined = SimpleNamespace(
        **{
            name: torch.cat([getattr(o, name) for o in outputs], 1)
            for name in ("posterior_mean", "posterior_log_var", "samples")
        },
        prior=MixtureDistribution(
            *(torch.cat([getattr(o.prior, name) for o in outputs], 1) for name in ("log_weights", "means", "log_vars"))
        ),
    )
    expected = D.Categorical(double([0.5, 0.25, 0.25])).entropy()
    torch.testing.assert_close(entropy(elbo.latent_terms(joined)), expected, check_dtype=False)


ALPHA_PRIOR = (6.0, 2.0)


def divergences_of(log_a, log_b, shape, rate):
    return stick_divergences(log_a, log_b, double(shape).log(), double(rate).log(), double(ALPHA_PRIOR))


@pytest.mark.parametrize("shape, rate", [(6.0, 2.0), (0.7, 0.4), (40.0, 9.0)])
def test_stick_kl_is_the_average_over_concentrations_and_sticks(shape, rate):
    """alpha from its Gamma, sticks from their Kumaraswamy: the mean log-ratio of the densities, all by torch's own."""
    draws = 200_000
    a, b = double([0.5, 1.0, 4.0, 2.0]), double([1.0, 3.0, 0.6, 8.0])
    alpha = D.Gamma(double(shape), double(rate)).sample((draws,))[:, None]
    sticks = D.Kumaraswamy(a, b)
    v = sticks.sample((draws,)).clamp(1e-12, 1 - 1e-12)
    log_beta = alpha.log() + (alpha - 1) * torch.log1p(-v)
    ratio = (sticks.log_prob(v) - log_beta).sum(-1)
    found = divergences_of(a.log(), b.log(), shape, rate)["stick_kl"]
    assert found.item() == pytest.approx(ratio.mean().item(), abs=5 * (ratio.std() / math.sqrt(draws)).item())


@pytest.mark.parametrize("shape, rate", [(6.0, 2.0), (0.7, 0.4), (40.0, 9.0)])
def test_alpha_kl_equals_numerical_integration(shape, rate):
    q, p = stats.gamma(shape, scale=1 / rate), stats.gamma(ALPHA_PRIOR[0], scale=1 / ALPHA_PRIOR[1])
    high = q.ppf(1 - 1e-15)
    exact = integrate.quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), 0, high, limit=400)[0]
    found = divergences_of(double([0.0]), double([0.0]), shape, rate)["alpha_kl"]
    assert found.item() == pytest.approx(exact, abs=1e-6)


def test_attention_kl_is_that_of_torchs_categoricals():
    """Its mean over slots and all frames but the first; a map that is zero somewhere counts zero there."""
    maps = torch.rand(2, 5, 3, 16, dtype=torch.float64).pow(4)
    maps[:, :, 0, :9] = 0
    maps = maps / maps.sum(-1, keepdim=True)
    log_prior = torch.randn(2, 4, 3, 16, dtype=torch.float64).log_softmax(-1)
    outputs = SimpleNamespace(attention=SimpleNamespace(maps=maps), prior_log_maps=log_prior)
    truth = D.kl_divergence(D.Categorical(maps[:, 1:]), D.Categorical(logits=log_prior)).mean()
    torch.testing.assert_close(predictive.attention_kl(outputs), truth)


def test_free_nats_stop_the_pull_below_them():
    mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    still = torch.zeros(1, 3, dtype=torch.float64)
    outputs = outputs_of((mean, torch.ones(3, dtype=torch.float64)), torch.zeros(1).double(), still, still, 4)
    elbo.above(elbo.latent_terms(outputs)["kl_z"], 1.0).backward()
    assert mean.grad.eq(0).all()
