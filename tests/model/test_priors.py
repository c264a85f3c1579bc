"""Every prior against torch.distributions, in training, and by name."""

from dataclasses import replace

import pytest
import torch
from torch import distributions as D
from torch.nn import functional as F

from aime_fast.config import preset_config
from aime_fast.errors import UserError, exit_on_user_error
from aime_fast.model.draws import make_draws
from aime_fast.model.priors import PRIORS, make_prior
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


def distribution_of(name):
    """A distribution of a prior with weights that are not those of initialisation."""
    torch.manual_seed(0)
    prior = make_prior(replace(CONFIG, prior=name))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    inputs = (torch.randn(B, T, size) for size in (CONFIG.hidden_dim, CONFIG.action_dim, CONFIG.latent_dim))
    return prior(*inputs, make_draws(prior.draws, B, T, torch.Generator().manual_seed(0)))


def test_each_prior_has_a_truth():
    assert TRUTH.keys() == PRIORS.keys()


@pytest.mark.parametrize("name", PRIORS)
def test_log_prob_is_that_of_torch(name):
    p = distribution_of(name)
    z = torch.randn(B, T, N, CONFIG.latent_dim)
    expected = TRUTH[name](p).log_prob(z.movedim(2, 0)).movedim(0, 2)
    torch.testing.assert_close(p.log_prob(z), expected, rtol=1e-5, atol=1e-4)
    log_p, log_r = p.log_prob_and_responsibilities(z)
    torch.testing.assert_close(log_p, expected, rtol=1e-5, atol=1e-4)
    assert log_r.shape == (B, T, N, p.log_weights.shape[-1])
    torch.testing.assert_close(log_r.exp().sum(-1), torch.ones(B, T, N))
    torch.testing.assert_close(p.log_weights.exp().sum(-1), torch.ones(B, T))


@pytest.mark.parametrize("name", PRIORS)
def test_samples_have_the_mean_and_variance_of_torchs_distribution(name):
    p, generator = distribution_of(name), torch.Generator().manual_seed(1)
    with torch.no_grad():
        drawn = torch.stack([p.sample(generator) for _ in range(4000)])
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


def test_an_unknown_prior_is_refused_with_the_nearest_name_and_the_list(capsys):
    assert exit_on_user_error(lambda: make_prior(replace(CONFIG, prior="none of these"))) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match=r"unknown --model.prior 'dpgm'; did you mean 'dpgmm'\? choose from .*dpgmm"):
        make_prior(replace(CONFIG, prior="dpgm"))


def test_with_a_closed_gate_the_weights_are_those_of_the_sticks_and_the_divergences_count_once_for_all_frames():
    torch.manual_seed(0)
    prior = make_prior(CONFIG)
    with torch.no_grad():
        prior.gate.weight.zero_()
        prior.gate.bias.zero_()
        prior.sticks.add_(torch.randn_like(prior.sticks))
        prior.concentration.add_(0.3)
    hidden, actions, latent = (torch.randn(B, T, n) for n in (CONFIG.hidden_dim, 3, CONFIG.latent_dim))
    draws = make_draws(prior.draws, B, T, torch.Generator().manual_seed(0))
    a, b = F.softplus(prior.sticks.double())
    sticks = (1 - (1 - draws["sticks"].double()) ** (1 / b)) ** (1 / a)
    left = torch.cat([torch.ones(B, T, 1), (1 - sticks).cumprod(-1)], -1)
    weights = left * torch.cat([sticks, torch.ones(B, T, 1)], -1)
    found = prior(hidden, actions, latent, draws)
    torch.testing.assert_close(found.log_weights.exp(), weights, rtol=1e-4, atol=1e-6, check_dtype=False)
    prior.frames_in_data.fill_(250)
    for name, kl in prior(hidden, actions, latent, draws).kl_terms().items():
        assert kl.shape == (B, T)
        torch.testing.assert_close(250 * kl, found.kl_terms()[name])


def test_the_mean_of_a_distribution_is_that_of_torch():
    for name in PRIORS:
        p = distribution_of(name)
        torch.testing.assert_close(p.mean, TRUTH[name](p).mean, rtol=1e-5, atol=1e-5)
