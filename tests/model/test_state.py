"""Filtering frame by frame, observing a window, and imagining share one state; imagination is differentiable."""

from dataclasses import replace

import pytest
import torch

from aime_fast.config import preset_config
from aime_fast.errors import UserError
from aime_fast.model.draws import make_draws
from aime_fast.model.priors import PRIORS
from aime_fast.model.priors.prior import Noise
from aime_fast.model.state import join
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.aggregator import LossAggregator
from aime_kernels.logistic_mixture.reference import reference_terms

CONFIG = replace(preset_config("debug").model, action_dim=3, image_size=32)
NAMES = ("latent", "maps", "hidden", "cell")


def made(**changes):
    """A model whose codebook, mean frame and learned start are not those of initialisation."""
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder.from_config(replace(CONFIG, **changes))
    with torch.no_grad():
        model.tokenizer.codebook.counts.fill_(1.0)
        model.mean_frame.copy_(0.1 * torch.randn_like(model.mean_frame))
        for start in (model.prior.start_latent, model.dynamics.start):
            start.copy_(0.3 * torch.randn_like(start))
    return model


@pytest.fixture(scope="module")
def model():
    return made()


def window(batch, frames, size=CONFIG.image_size):
    observations = torch.randint(0, 256, (batch, frames, 3, size, size), dtype=torch.uint8)
    return observations, torch.randn(batch, frames, CONFIG.action_dim)


def filtered(model, observations, actions):
    states = [model.initial_state(len(observations))]
    for t in range(observations.shape[1]):
        states.append(model.filter(states[-1], observations[:, t], actions[:, t - 1] if t else None))
    return join(states[1:])


def assert_same(found, expected, names=NAMES):
    for name in names:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("batch, frames", [(1, 1), (2, 2), (3, 5), (1, 24)])
def test_filtering_frame_by_frame_is_observing_the_window(model, batch, frames):
    """24 frames are more than the debug preset trains on."""
    observations, actions = window(batch, frames)
    whole, stepwise = model.observe(observations, actions), filtered(model, observations, actions)
    assert_same(stepwise, whole)
    assert whole.frames == frames
    assert [getattr(whole, name).shape[:2] for name in NAMES] == [(batch, frames)] * len(NAMES)
    assert stepwise.memory.frames == whole.memory.frames == frames
    for found, expected in zip(stepwise.memory.layers, whole.memory.layers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch, frames", [(1, 1), (2, 5)])
def test_observing_is_the_deterministic_training_pass(model, batch, frames):
    observations, actions = window(batch, frames)
    outputs = model.eval()(observations, actions)
    assert_same(model.observe(observations, actions), outputs.state, NAMES[:-1])
    assert_same(model.observe(observations, actions[:, :-1]), outputs.state, NAMES[:-1])
    torch.testing.assert_close(model.decode(outputs.state).mean(), outputs.reconstructions)
    assert outputs.state.cell is None and outputs.state.memory is None


def test_filtering_goes_on_from_any_observed_frame(model):
    observations, actions = window(2, 6)
    whole = model.observe(observations, actions)
    middle = model.observe(observations[:, :5], actions).at(3)
    assert middle.memory.frames == 4
    assert_same(model.filter(middle, observations[:, 4], actions[:, 3]), whole.at(4))
    assert_same(whole.at(-1), whole.at(5))
    with pytest.raises(IndexError):
        whole.at(6)


@pytest.mark.parametrize("prior", PRIORS)
def test_imagining_starts_alike_from_observed_and_from_filtered_frames(prior):
    model = made(prior=prior)
    observations, actions = window(2, 4)
    future = torch.randn(2, 3, CONFIG.action_dim)
    first = model.imagine(model.observe(observations, actions), future, samples=2, key=5)
    second = model.imagine(filtered(model, observations, actions), future, samples=2, key=5)
    assert_same(first, second)
    assert first.latent.shape == (4, 3, CONFIG.latent_dim)
    assert model.decode(first).mean().shape == (4, 3, 3, CONFIG.image_size, CONFIG.image_size)
    assert not torch.allclose(first.latent[0], first.latent[1]), "two futures of one sequence"
    torch.testing.assert_close(first.maps.sum(-1), torch.ones(4, 3, CONFIG.num_slots))
    further = model.imagine(first, future.repeat_interleave(2, 0), key=6)
    assert further.latent.shape == first.latent.shape and further.latent.isfinite().all()


@pytest.mark.parametrize("prior", PRIORS)
def test_alike_futures_differ_by_their_actions_alone(prior):
    """Future s has the same numbers after each of three equal states, and the futures of one state have others."""
    model = made(prior=prior).eval()
    observations, actions = window(1, 4)
    state = model.observe(observations, actions).repeat(3)
    future = torch.randn(3, 5, CONFIG.action_dim)
    future[1] = future[0]
    imagined = model.imagine(state, future, samples=2, key=1, alike=True)
    first, same, other = imagined.latent.unflatten(0, (3, 2))
    assert torch.equal(first, same) and not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, other)
    apart = model.imagine(state, future, samples=2, key=1).latent.unflatten(0, (3, 2))
    assert not torch.allclose(apart[0], apart[1])


@pytest.mark.parametrize("prior", PRIORS)
def test_imagining_is_the_training_pass_over_the_frames_imagined(prior):
    """Dynamics, prior and top-down prior over all frames at once, with the same draws, give what imagining gave."""
    model = made(prior=prior).eval()
    for layer in (model.attention_prior.logits, model.attention_prior.motion):
        torch.nn.init.normal_(layer.weight, std=0.1)
    observations, actions = window(2, 7)
    seen = model.observe(observations[:, :3], actions)
    imagined = model.imagine(seen, actions[:, 2:6], key=9)
    z, maps = (torch.cat([getattr(x, name) for x in (seen, imagined)], 1) for name in ("latent", "maps"))
    with torch.no_grad():
        hidden, _ = model.dynamics(z, actions, model.dynamics.start_state(2))
        torch.testing.assert_close(imagined.hidden, hidden[:, 2:6], rtol=1e-5, atol=1e-5)
        log_maps, _ = model.attention_prior(maps[:, :-1], hidden[:, :-1], z[:, :-1], actions[:, :-1])
        torch.testing.assert_close(imagined.maps, log_maps.exp()[:, 2:], rtol=1e-4, atol=1e-6)
        generator = torch.Generator().manual_seed(9)
        for t in range(3, 7):
            before = (x[:, t - 1 : t] for x in (hidden, actions, z))
            drawn = model.prior(*before, make_draws(model.prior.draws, 2, 1, generator)).sample(Noise(generator))
            torch.testing.assert_close(imagined.latent[:, t - 3], drawn[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "prior, names", [("dpgmm", ("log_weights", "means", "log_vars")), ("gaussian", ("mean", "log_var"))]
)
def test_the_first_imagined_frame_is_drawn_from_the_prior_that_training_has_for_it(prior, names):
    """The prior of frame t in a training pass and that of imagining after frame t-1 are the same distribution."""
    model = made(prior=prior).eval()
    if prior == "dpgmm":  # the two calls draw different sticks
        model.prior._weights = lambda gate, uniform: (gate.log_softmax(-1), {})
    observations, actions = window(2, 4)
    distributions = []
    hook = model.prior.register_forward_hook(lambda module, inputs, outputs: distributions.append(outputs))
    model(observations, actions)
    model.imagine(model.observe(observations[:, :3], actions), actions[:, 2:3])
    hook.remove()
    training, imagined = distributions
    for name in names:
        torch.testing.assert_close(getattr(imagined, name), getattr(training, name)[:, 3:], rtol=1e-5, atol=1e-5)


def test_a_policy_sees_each_state_and_decides_the_action(model):
    state = model.observe(*window(2, 2))
    seen = []

    def policy(current):
        seen.append(current)
        return current.latent[:, 0, : CONFIG.action_dim].tanh()

    imagined = model.imagine(state, policy, samples=3, horizon=4)
    assert len(seen) == 4
    assert_same(seen[0], state.at(-1).repeat(3))
    assert_same(join(seen[1:]), join([imagined.at(t) for t in range(3)]))
    actions = torch.stack([current.latent[:, 0, : CONFIG.action_dim].tanh() for current in seen], 1)
    assert_same(model.imagine(state.repeat(3), actions), imagined)


@pytest.mark.parametrize("prior", PRIORS)
def test_gradients_of_actions_match_finite_differences(prior):
    model = made(prior=prior).double()
    observations, actions = window(2, 3)
    state = model.observe(observations.double() / 127.5 - 1, actions.double())
    future = torch.randn(2, 4, CONFIG.action_dim, dtype=torch.float64, requires_grad=True)

    def total(actions, differentiable=False):
        imagined = model.imagine(state, actions, samples=2, key=1, differentiable=differentiable)
        assert imagined.latent.dtype == torch.float64
        return (imagined.latent * weights).sum() + model.decode(imagined).expectation().mean()

    weights = torch.randn(4, 4, CONFIG.latent_dim, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(total(future, True), future)
    assert not model.imagine(state, future).latent.requires_grad
    assert gradient.isfinite().all() and gradient.abs().flatten(0, 1).amin() > 0
    direction, step = torch.randn_like(future), 1e-5
    with torch.no_grad():
        numerical = (total(future + step * direction) - total(future - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numerical, rtol=1e-5, atol=1e-8)


def test_a_policy_is_trained_through_imagination(model):
    state = model.observe(*window(2, 2))
    policy = torch.nn.Linear(CONFIG.latent_dim, CONFIG.action_dim)
    imagined = model.imagine(state, lambda s: policy(s.latent[:, 0]), horizon=3, differentiable=True)
    imagined.latent.square().sum().backward()
    assert policy.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_the_lstm_has_gradients_in_evaluation_mode():
    """cuDNN has none while a network is in evaluation mode; this one has no dropout to switch off."""
    evaluated = made().eval()
    assert evaluated.dynamics.lstm.training and not evaluated.dynamics.training and not evaluated.prior.training


@pytest.mark.gpu
def test_a_policy_is_trained_through_imagination_on_a_gpu():
    model = made().cuda().eval()
    observations, actions = (x.cuda() for x in window(2, 2))
    policy = torch.nn.Linear(CONFIG.latent_dim, CONFIG.action_dim, device="cuda")
    state = model.observe(observations, actions)
    model.imagine(state, lambda s: policy(s.latent[:, 0]), horizon=3, differentiable=True).latent.sum().backward()
    assert policy.weight.grad.isfinite().all() and policy.weight.grad.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("prior", PRIORS)
def test_a_model_on_a_gpu_is_filtered_and_imagined(prior):
    model = made(prior=prior).cuda()
    observations, actions = (x.cuda() for x in window(2, 3))
    imagined = model.imagine(filtered(model, observations, actions), actions, samples=2)
    assert model.decode(imagined).mean().isfinite().all()


@pytest.mark.parametrize("size", [32, 64, 96, 128])
def test_every_image_size_is_trained_filtered_imagined_and_decoded(size):
    model = made(image_size=size)
    observations, actions = window(1, 3, size)
    outputs = model.train()(observations, actions)
    losses, tasks = LossAggregator().compute_losses(outputs)
    sum(tasks).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    parts = (outputs.pixels, outputs.likelihood.centre, outputs.likelihood.parameters())
    x, centre, blocks = (part.detach().flatten(0, 2).flatten(2) for part in parts)
    log_prob, _ = reference_terms(x, centre, blocks.unflatten(1, (-1, 10)))
    expected = -log_prob.sum() / observations.numel()
    torch.testing.assert_close(losses["recon_loss"], expected, rtol=1e-4, atol=1e-4)
    state = model.observe(observations, actions)
    assert_same(filtered(model, observations, actions), state)
    frames = model.decode(model.imagine(state, actions)).mean()
    assert frames.shape == outputs.reconstructions.shape == observations.shape
    assert outputs.perceiver_reconstructions.shape == observations.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_actions_of_any_type_are_read(model, dtype):
    observations, actions = window(2, 3)
    actions = actions.round()
    state = model.observe(observations, actions)
    assert_same(model.observe(observations, actions.to(dtype)), state)
    assert_same(model.imagine(state, actions.to(dtype)), model.imagine(state, actions))


def test_what_cannot_be_filtered_or_imagined_is_refused_in_a_line(model):
    observations, actions = window(2, 2)
    state = model.observe(observations, actions)
    with pytest.raises(UserError, match="at least one frame"):
        model.imagine(model.initial_state(2), actions)
    with pytest.raises(UserError, match="no LSTM cell"):
        model.imagine(model(observations, actions).state, actions)
    with pytest.raises(UserError, match="imagined or a training state"):
        model.filter(model.imagine(state, actions), observations[:, 0], actions[:, 0])
    with pytest.raises(UserError, match="horizon"):
        model.imagine(state, lambda current: actions[:, 0])
    for wrong in (actions[:1], actions[..., :2], actions[:, 0]):
        with pytest.raises(UserError, match="actions"):
            model.imagine(state, wrong)
    for horizon in (0, 3):
        with pytest.raises(UserError, match=f"2 actions, horizon {horizon} and samples 1"):
            model.imagine(state, actions, horizon=horizon)
    for samples in (0, -1):
        with pytest.raises(UserError, match=f"samples {samples}"):
            model.imagine(state, actions, samples=samples)
    with pytest.raises(UserError, match="no recorded actions, horizon 2"):
        model.imagine(state, actions[:, :0], horizon=2)
    with pytest.raises(UserError, match=r"actions of one frame are \(1, 3\)"):
        model.imagine(state, lambda current: actions[:1, 0], horizon=1)
    with pytest.raises(UserError, match="needs previous_action"):
        model.filter(state, observations[:, 0])
    with pytest.raises(UserError, match="1 sequences and the state 2"):
        model.filter(state, observations[:1, 0], actions[:1, 0])
    with pytest.raises(UserError, match="observe reads"):
        model.observe(observations, actions[:, :0])
    with pytest.raises(UserError, match="observations are"):
        model.filter(state, observations[:, 0, :, :16], actions[:, 0])
