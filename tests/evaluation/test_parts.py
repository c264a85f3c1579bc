"""Each counterpart really stands in for its part of the real model, and the model is itself again afterwards."""

from dataclasses import replace

import pytest
import torch
from made_windows import noise_windows
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from aime_fast.config import preset_config
from aime_fast.evaluation.worth.counterparts import (
    COUNTERPARTS,
    Facts,
    collapsed,
    filtering_draws,
    find_facts,
    with_uniform_weights,
)
from aime_fast.evaluation.worth.parts import NATS, kl_of_frames, measure, price_parts
from aime_fast.evaluation.worth.predictors import compare_predictors
from aime_fast.model.priors.mixture import MixtureDistribution
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.registry import make_tasks

CONTEXT = 5
BY_NAME = {part.name: part for part in COUNTERPARTS}


def make_model(**sizes):
    torch.manual_seed(0)
    config = replace(preset_config("debug").model, action_dim=6, image_size=64, **sizes)
    model = WorldModel.from_config(config)
    model.add_heads(make_tasks(["elbo", "reward"]))
    with torch.no_grad():  # so that every part matters
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def windows():
    return noise_windows(CONTEXT + 3, stride=8)


@pytest.fixture(scope="module")
def facts(model, windows):
    return find_facts(model, windows)


def passed(model, windows):
    """A filtering pass, and an imagined future."""
    _, batch = next(windows.parts())
    frames, actions = batch.frames(), batch.actions
    outputs = model(frames, actions, filtering_draws(model, 0, *frames.shape[:2]))
    state = model.observe(frames[:, :CONTEXT], actions[:, :CONTEXT])
    return outputs, model.imagine(state, actions[:, CONTEXT - 1 : -1], samples=2)


def differs(a, b):
    return not torch.allclose(a, b, atol=1e-6)


@torch.no_grad()
def test_filtering_draws_carry_no_noise(model):
    draws = filtering_draws(model, 3, 2, 4)
    assert not draws["latent_noise"].any()
    assert draws["latent"].std() > 0.5
    assert draws["sticks"].std() > 0.1
    assert torch.equal(filtering_draws(model, 3, 2, 4)["latent"], draws["latent"])


@torch.no_grad()
def test_facts_are_those_of_the_model(model, windows, facts):
    latents, steps = [], []
    for rows, batch in windows.parts():
        draws = filtering_draws(model, int(rows[0]), *batch.actions.shape[:2])
        outputs = model(batch.frames(), batch.actions, draws)
        latents.append(outputs.latents.flatten(0, 1))
        steps.append((outputs.samples[:, 1:] - outputs.latents[:, :-1, None]).square().mean(2).flatten(0, 1))
    torch.testing.assert_close(facts.slots, torch.cat(latents).mean(0)[model.decoder.pieces.shared :])
    assert len(facts.slots) == model.config.num_slots * model.decoder.pieces.slot
    torch.testing.assert_close(facts.step_log_var, torch.cat(steps).mean(0).log())
    assert facts.mixture


@torch.no_grad()
def test_slots(model, windows, facts):
    """The decoder alone reads the mean pieces of the slots, with the shared piece of each frame."""
    whole, future = passed(model, windows)
    with BY_NAME["slots: their mean"].standing_in(model, facts):
        outputs, imagined = passed(model, windows)
        reconstruction = model.reconstruct(outputs)
    assert torch.equal(outputs.latents, whole.latents) and torch.equal(imagined.latent, future.latent)
    mean = whole.posterior_mean.clone()
    mean[..., -len(facts.slots) :] = facts.slots
    torch.testing.assert_close(reconstruction, model.likelihood(mean, whole.state.kept).mean())
    assert differs(reconstruction, model.reconstruct(whole))


@torch.no_grad()
def test_context(model, windows, facts):
    whole, future = passed(model, windows)
    with BY_NAME["context: zero"].standing_in(model, facts):
        outputs, imagined = passed(model, windows)
    features, zero = whole.features.flatten(0, 1), torch.zeros_like(whole.context)
    mean, _ = model.posterior(features, model.attention(features, zero), zero)
    torch.testing.assert_close(outputs.posterior_mean, mean)
    assert differs(outputs.posterior_mean, whole.posterior_mean)
    assert differs(imagined.latent, future.latent)


@torch.no_grad()
def test_nothing_kept(model, windows, facts):
    """Frames are drawn from z alone; nothing else changes."""
    whole, future = passed(model, windows)
    with BY_NAME["kept frame: none"].standing_in(model, facts):
        outputs, imagined = passed(model, windows)
        reconstruction, ahead = model.reconstruct(outputs), model.decode(imagined).mean()
    assert torch.equal(outputs.latents, whole.latents) and torch.equal(imagined.latent, future.latent)
    torch.testing.assert_close(reconstruction, model.likelihood(whole.posterior_mean).mean())
    torch.testing.assert_close(ahead, model.likelihood(future.latent).mean())
    assert differs(reconstruction, model.reconstruct(whole))


@torch.no_grad()
def test_an_lstm_that_forgets_sees_one_frame(model, windows, facts):
    whole, _ = passed(model, windows)
    _, batch = next(windows.parts())
    with BY_NAME["LSTM: reset each frame"].standing_in(model, facts):
        outputs, imagined = passed(model, windows)
    for t in range(windows.length):
        inputs = (x[:, t : t + 1] for x in (whole.latents, batch.actions))
        alone, _ = model.dynamics(*inputs, model.dynamics.start_state(len(batch)))
        torch.testing.assert_close(outputs.hidden_states[:, t : t + 1], alone)
    assert differs(outputs.hidden_states[:, 1:], whole.hidden_states[:, 1:])
    assert imagined.frames == 3


@torch.no_grad()
def test_a_random_walk_as_the_prior(model, windows, facts):
    with BY_NAME["prior: N(z of the frame before)"].standing_in(model, facts):
        outputs, _ = passed(model, windows)
    expected = Independent(Normal(outputs.latents[:, :-1, None], (0.5 * facts.step_log_var).exp()), 1)
    torch.testing.assert_close(
        outputs.prior.log_prob(outputs.samples)[:, 1:], expected.log_prob(outputs.samples[:, 1:])
    )


def mixture(dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    log_weights = torch.randn(1, 1, 3, generator=draw, dtype=dtype).log_softmax(-1)
    means, log_vars = torch.randn(2, 1, 1, 3, 2, generator=draw, dtype=dtype)
    return MixtureDistribution(log_weights, means, log_vars)


def test_one_gaussian_has_the_moments_of_the_mixture():
    prior = mixture()
    parts = Independent(Normal(prior.means, (0.5 * prior.log_vars).exp()), 1)
    expected = MixtureSameFamily(Categorical(logits=prior.log_weights), parts)
    one = collapsed(prior)
    torch.testing.assert_close(one.mean, expected.mean)
    torch.testing.assert_close(one.log_var.exp(), expected.variance)


def test_uniform_weights():
    prior = mixture()
    even = with_uniform_weights(prior)
    torch.testing.assert_close(even.log_weights.exp(), torch.full_like(prior.log_weights, 1 / 3))
    assert even.means is prior.means


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixture: one Gaussian", "mixture: uniform weights"])
def test_other_mixtures_change_the_prior_alone(model, windows, facts, name):
    whole, _ = passed(model, windows)
    with BY_NAME[name].standing_in(model, facts):
        outputs, _ = passed(model, windows)
    assert torch.equal(outputs.samples, whole.samples)
    assert differs(kl_of_frames(outputs), kl_of_frames(whole))


def test_kl_of_frames_is_the_task_s_kl_z(model, windows):
    from aime_fast.tasks.elbo import latent_terms

    with torch.no_grad():
        outputs, _ = passed(model, windows)
        torch.testing.assert_close(kl_of_frames(outputs).mean(), latent_terms(outputs)["kl_z"])


def test_the_table_leaves_the_model_as_it_was(model, windows):
    before = measure(model, windows, CONTEXT)
    shown = []
    found = price_parts(model, windows, windows, CONTEXT, note=shown.append)
    after = measure(model, windows, CONTEXT)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("forward" in vars(part) for part in model.modules())
    assert list(found.whole) == ["0", "1", NATS], "five frames ahead are not in these windows"
    assert [row.name for row in found.rows] == list(BY_NAME)
    assert len(shown) == len(BY_NAME)
    costs = {row.name: {name: value.mean for name, value in row.costs.items()} for row in found.rows}
    assert costs["mixture: one Gaussian"]["0"] == 0.0, "the prior does not reconstruct"
    assert costs["slots: their mean"]["0"] != 0.0
    assert costs["slots: their mean"][NATS] == 0.0
    assert costs["mixture: uniform weights"][NATS] != 0.0
    assert "slots: their mean" in str(found)


def test_a_model_without_a_mixture_says_so(windows):
    model = make_model(prior="gaussian")
    found = price_parts(model, windows, windows, CONTEXT)
    missing = {row.name: row.missing for row in found.rows if row.missing}
    assert missing == dict.fromkeys(["mixture: one Gaussian", "mixture: uniform weights"], "the prior is no mixture")
    assert "left out: the prior is no mixture" in str(found)
    assert compare_predictors(model, windows, windows).figures == {"components with a share above 2%": 1.0}


class Other(nn.Module):
    """A model of another design: z and actions are all that is carried."""

    class Reader(nn.Module):
        def forward(self, hidden):
            return hidden

    def __init__(self):
        super().__init__()
        self.dynamics, self.prior, self.decoder = self.Reader(), self.Reader(), self.Reader()


def test_what_a_model_has_not_is_left_out():
    facts = Facts(None, torch.zeros(1), False)
    reasons = {part.name: part.missing(Other(), facts) for part in COUNTERPARTS}
    assert reasons == {
        "slots: their mean": "no piece of z belongs to a slot",
        "context: zero": "no part reads the context",
        "kept frame: none": "the decoder reads no older frame",
        "LSTM: reset each frame": None,
        "prior: N(z of the frame before)": "the prior does not read z of the frame before",
        "mixture: one Gaussian": "the prior is no mixture",
        "mixture: uniform weights": "the prior is no mixture",
    }


def test_predictors_next_to_copying(model, windows):
    found = compare_predictors(model, windows, windows)
    for name, (own, copied) in found.against_copying.items():
        assert own >= 0 and copied >= 0, name
    entropy, accuracy = (found.against_copying[f"next token, {name}"] for name in ("cross-entropy in nats", "accuracy"))
    ids = torch.cat([model(b.frames(), b.actions).token_info.ids for _, b in windows.parts()])
    assert accuracy[1] == pytest.approx((ids[:, 1:] == ids[:, :-1]).float().mean().item(), abs=1e-6)
    assert entropy[1] < torch.log(torch.tensor(float(model.config.num_codes))) + 0.1
    assert found.figures["stick_kl in nats a frame"] >= 0
    assert "copying" in str(found)
