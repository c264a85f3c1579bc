"""Every prior against torch.distributions, in training, and by name."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import integrate, stats
from torch import distributions as D

from aime_fast.config import preset_config
from aime_fast.errors import UserError, exit_on_user_error
from aime_fast.model.draws import make_draws
from aime_fast.model.priors import PRIORS, make_prior
from aime_fast.model.priors.prior import Noise
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.aggregator import LossAggregator

CONFIG = replace(preset_config("debug").model, action_dim=3, image_size=32)
B, T, N = 2, 3, 4


def mixture(p):
    weights = D.Categorical(logits=p.log_weights)
    return D.MixtureSameFamily(weights, D.Independent(D.Normal(p.means, (0.5 * p.log_vars).exp()), 1))


TRUTH = {
    "dpgmm": mixture,
    "dpgmm-frame": mixture,
    "gaussian": lambda p: D.Independent(D.Normal(p.mean, (0.5 * p.log_var).exp()), 1),
}
"""The distribution of torch for a distribution of each prior."""


def inputs_of(dtype=torch.float32):
    """h, a and z of the frames before."""
    sizes = CONFIG.hidden_dim, CONFIG.action_dim, CONFIG.latent_dim
    return [torch.randn(B, T, size, dtype=dtype) for size in sizes]


def distribution_of(name):
    """A distribution of a prior with weights that are not those of initialisation."""
    torch.manual_seed(0)
    prior = make_prior(replace(CONFIG, prior=name))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return prior(*inputs_of(), make_draws(prior.draws, B, T, torch.Generator().manual_seed(0)))


def test_each_prior_has_a_truth():
    assert TRUTH.keys() == PRIORS.keys()


@pytest.mark.parametrize("name", PRIORS)
def test_density_and_mean_are_those_of_torch(name):
    p = distribution_of(name)
    z = torch.randn(B, T, N, CONFIG.latent_dim)
    expected = TRUTH[name](p).log_prob(z.movedim(2, 0)).movedim(0, 2)
    torch.testing.assert_close(p.log_prob(z), expected, rtol=1e-5, atol=1e-4)
    log_p, log_r = p.log_prob_and_responsibilities(z)
    torch.testing.assert_close(log_p, expected, rtol=1e-5, atol=1e-4)
    assert log_r.shape == (B, T, N, p.log_weights.shape[-1])
    torch.testing.assert_close(p.mean, TRUTH[name](p).mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_r.exp().sum(-1), torch.ones(B, T, N))
    torch.testing.assert_close(p.log_weights.exp().sum(-1), torch.ones(B, T))


@pytest.mark.parametrize("name", PRIORS)
def test_samples_have_the_mean_and_variance_of_torchs_distribution(name):
    p, generator = distribution_of(name), torch.Generator().manual_seed(1)
    with torch.no_grad():
        drawn = torch.stack([p.sample(Noise(generator)) for _ in range(4000)])
        truth = TRUTH[name](p)
    error = 5 * (truth.variance / len(drawn)).sqrt()
    assert ((drawn.mean(0) - truth.mean).abs() < error).all()
    torch.testing.assert_close(drawn.var(0), truth.variance, rtol=0.25, atol=0)


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_is_trained(name):
    """Each parameter gets a gradient of the ELBO, and the KL falls when only the prior learns."""
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder.from_config(replace(CONFIG, prior=name))
    frames, actions = torch.randint(0, 256, (B, T, 3, 32, 32), dtype=torch.uint8), torch.randn(B, T, 3)
    optimizer, kls = torch.optim.Adam(model.prior.parameters(), lr=3e-3), []
    for _ in range(30):
        losses, tasks = LossAggregator().compute_losses(model(frames, actions, model.draws(0, B, T)), beta=1.0)
        optimizer.zero_grad()
        tasks[0].backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in model.prior.parameters())
        optimizer.step()
        kls.append((losses["kl_z"] + losses["hierarchical_kl"]).item())
    assert kls[-1] < kls[0] - 1
    assert 1 - 1e-5 <= losses["effective_components"] <= CONFIG.max_components + 1e-3


def test_without_a_gate_the_weights_are_those_of_the_sticks():
    """Broken off one after the other, v = (1 - (1 - u)^(1/b))^(1/a) of what is left, the same for all frames."""
    prior = make_prior(CONFIG).double()
    with torch.no_grad():
        for parameter in (prior.gate.weight, prior.gate.bias):
            parameter.zero_()
        prior.sticks.copy_(torch.randn_like(prior.sticks))
    uniform = torch.rand(B, T, CONFIG.max_components - 1, dtype=torch.float64)
    a, b = torch.nn.functional.softplus(prior.sticks)
    weights, left = [], torch.ones(B, T, dtype=torch.float64)
    for k in range(CONFIG.max_components - 1):
        v = (1 - (1 - uniform[..., k]) ** (1 / b[k])) ** (1 / a[k])
        weights.append(left * v)
        left = left * (1 - v)
    wanted = torch.stack([*weights, left], -1)
    given = prior(*inputs_of(torch.float64), {"sticks": uniform})
    torch.testing.assert_close(given.log_weights.exp(), wanted)
    gate = torch.randn(CONFIG.max_components, dtype=torch.float64)
    with torch.no_grad():
        prior.gate.bias.copy_(gate)
    gated = prior(*inputs_of(torch.float64), {"sticks": uniform}).log_weights.exp()
    torch.testing.assert_close(gated, wanted * gate.exp() / (wanted * gate.exp()).sum(-1, keepdim=True))


def test_components_are_offsets_and_changes_of_low_rank_around_one_point():
    prior = make_prior(CONFIG).double()
    draws = make_draws(prior.draws, 20, 10, torch.Generator().manual_seed(0))
    inputs = [torch.randn(20, 10, x.shape[-1], dtype=torch.float64) for x in inputs_of()]
    means = prior(*inputs, draws).means
    apart = (means - means[:, :, :1]).flatten(2)
    spread = (apart - apart.mean((0, 1))).flatten(0, 1)
    assert torch.linalg.matrix_rank(spread, rtol=1e-9) == CONFIG.regime_rank
    with torch.no_grad():
        prior.directions.zero_()
    means = prior(*inputs, draws).means
    offsets = prior.offsets - prior.offsets[:1]
    torch.testing.assert_close(means - means[:, :, :1], offsets.expand_as(means))


@pytest.mark.parametrize("frames", [1, 250])
def test_the_measure_of_all_frames_counts_once_for_the_data_set(frames):
    """Its divergences, by numerical integration, divided by the frames; the sum over all frames is the divergence."""
    prior = make_prior(CONFIG)
    prior.frames_in_data.fill_(frames)
    with torch.no_grad():
        prior.sticks.normal_()
        prior.concentration.normal_().add_(2)
    found = prior(*inputs_of(), make_draws(prior.draws, B, T, torch.Generator().manual_seed(0))).kl_terms()
    (a, b), (shape, rate) = (
        torch.nn.functional.softplus(x.detach().double()) for x in (prior.sticks, prior.concentration)
    )
    exact = stick_kl(a, b, shape, rate), alpha_kl(shape, rate)
    for name, total in zip(("stick_kl", "alpha_kl"), exact, strict=True):
        wanted = torch.full((B, T), total / frames)
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-5 / frames)


def stick_kl(a, b, shape, rate):
    """E_alpha KL(Kumaraswamy(a, b) || Beta(1, alpha)), summed over the sticks; over quantiles, so no tail is cut."""
    mean, mean_log = shape / rate, torch.digamma(shape) - rate.log()

    def ratio(u, a, b):
        v = min(max((1 - (1 - u) ** (1 / b)) ** (1 / a), 1e-300), 1 - 1e-16)
        log_q = math.log(a * b) + (a - 1) * math.log(v) + (b - 1) / b * math.log1p(-u)
        return log_q - mean_log.item() - (mean.item() - 1) * math.log1p(-v)

    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return sum(integrate.quad(ratio, 0, 1, args=pair, limit=400)[0] for pair in pairs)


def alpha_kl(shape, rate):
    q = stats.gamma(shape.item(), scale=1 / rate.item())
    p = stats.gamma(CONFIG.concentration_shape, scale=1 / CONFIG.concentration_rate)
    return integrate.quad(lambda u: q.logpdf(q.ppf(u)) - p.logpdf(q.ppf(u)), 0, 1, limit=400)[0]


def test_sticks_of_every_frame_count_in_every_frame():
    """The published prior: its divergences depend on the frame, and not on the size of the data set."""
    prior = make_prior(replace(CONFIG, prior="dpgmm-frame"))
    inputs, draws = inputs_of(), make_draws(prior.draws, B, T, None)
    one = prior(*inputs, draws).kl_terms()
    prior.frames_in_data.fill_(250)
    for name, kl in prior(*inputs, draws).kl_terms().items():
        assert torch.equal(kl, one[name]) and kl.unique().numel() == B * T


def test_an_unknown_prior_is_refused_with_the_nearest_name_and_the_list(capsys):
    assert exit_on_user_error(lambda: make_prior(replace(CONFIG, prior="none of these"))) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match=r"unknown --model.prior 'dpgm'; did you mean 'dpgmm'\? choose from .*dpgmm"):
        make_prior(replace(CONFIG, prior="dpgm"))
