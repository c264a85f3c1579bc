"""What is kept of older frames: which frame it is, how it is moved, and what an imagined frame may see of it."""

from dataclasses import replace

import pytest
import torch
from scipy.ndimage import map_coordinates

from aime_fast.config import preset_config
from aime_fast.model.parts.decoder import Decoder
from aime_fast.model.parts.keeping import GAIN, Keeping, centres, moved, older
from aime_fast.model.parts.layers import CONTRAST
from aime_fast.model.parts.subimages import from_subimages, subimages
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder

CONFIG = replace(preset_config("debug").model, action_dim=3, image_size=32)


@pytest.fixture
def model():
    """One that keeps much: a third, from beside."""
    torch.manual_seed(0)
    made = DPGMMVariationalRecurrentAutoencoder.from_config(CONFIG).eval()
    made.decoder.keeping.of_pixels.bias.data.copy_(torch.tensor([-0.07, 0.15, 0.0]))
    return made


def window(batch, frames):
    observations = torch.randint(0, 256, (batch, frames, 3, 32, 32), dtype=torch.uint8)
    return observations, torch.randn(batch, frames, 3)


@pytest.mark.parametrize("side", [5, 8, 12])
def test_moving_is_linear_interpolation_with_the_border_repeated(side):
    frames = torch.randn(2, 3, side, side, dtype=torch.float64)
    shift = 3 * torch.randn(2, 2, side, side, dtype=torch.float64)
    found = moved(frames, shift, centres(side))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for n in range(2):
        at = torch.stack([rows + shift[n, 1], columns + shift[n, 0]]).numpy()
        for channel in range(3):
            expected = map_coordinates(frames[n, channel].numpy(), at, order=1, mode="nearest")
            torch.testing.assert_close(found[n, channel], torch.from_numpy(expected))
    assert torch.autograd.gradcheck(moved, (frames[:1].requires_grad_(), shift[:1].requires_grad_(), centres(side)))


@pytest.mark.parametrize("time", [1, 2, 9])
def test_an_older_frame_is_one_of_before(time):
    numbers = torch.arange(float(time)).expand(512, time)
    frames = numbers[..., None, None, None].expand(-1, -1, 3, 2, 2)
    first = torch.full((3, 2, 2), -1.0)
    torch.manual_seed(0)
    found = older(frames, torch.rand(512, time), first)[..., 0, 0, 0]
    assert (found < numbers).all() and (found >= -1).all()
    assert torch.equal(older(frames, torch.zeros(512, time), first)[..., 0, 0, 0], numbers - 1)
    if time == 9:
        last = found[:, -1]
        assert set(last.tolist()) == set(range(-1, 8)), "every distance is met, and none"
        assert 200 < (last == -1).sum() < 312, "half of all frames keep nothing"


def kept_of(keeping, frames, mean):
    """The share that one feature of 1 loses, [N, h*w], and what is kept, for features of one number."""
    features = torch.ones(len(frames), mean[0].numel() // keeping.patch**2, 1)
    drawn, added = keeping(features, torch.zeros_like(features[0]), frames, mean)
    return 1 - drawn[..., 0], added


def test_an_eighth_is_kept_at_first_and_the_whole_frame_where_all_is():
    keeping, mean, frames = Keeping(1, 2, 16), torch.randn(3, 16, 16), torch.randn(4, 3, 16, 16)
    eighth = torch.sigmoid(torch.tensor(-2.0))
    share, added = kept_of(keeping, frames, mean)
    torch.testing.assert_close(share, eighth.expand(4, 64))
    torch.testing.assert_close(added, eighth * subimages(frames - mean, 2))
    keeping.of_pixels.bias.data[0] = 50.0
    share, added = kept_of(keeping, frames, mean)
    assert (share == 1).all()
    torch.testing.assert_close(mean + from_subimages(added), frames)


def test_places_are_those_of_the_features_and_of_the_old_frame():
    """One place whose feature asks for it is kept, and one whose pixels do."""
    keeping, mean = Keeping(2, 2, 8), torch.zeros(3, 8, 8)
    with torch.no_grad():
        keeping.of_pixels.bias[0] = -5.0
        keeping.of_features.weight[0, 0] = 10.0
        keeping.of_pixels.weight[0, 0] = 10.0 / CONTRAST  # of the first pixel of a place, red
    features, frames = torch.stack([torch.zeros(16), torch.ones(16)], -1)[None], torch.full((1, 3, 8, 8), 0.01)
    features[0, 1 * 4 + 2, 0] = 1.0
    frames[0, 0, 6, 2] = 1.0
    drawn, added = keeping(features, torch.zeros(16, 2), frames, mean)
    assert (1 - drawn[0, :, 1]).round().nonzero().flatten().tolist() == [1 * 4 + 2, 3 * 4 + 1]
    assert from_subimages(added)[0, 0].round().nonzero().tolist() == [[6, 2]]


def test_the_mean_frame_stands_for_no_frame():
    keeping, mean = Keeping(1, 2, 16), torch.randn(3, 16, 16)
    share, added = kept_of(keeping, torch.stack([mean, torch.randn(3, 16, 16), mean]), mean)
    assert not share[::2].any() and not added[::2].any() and share[1].all()


@pytest.mark.parametrize("likelihood", ["logistic_mixture", "gaussian"])
def test_what_is_kept_whole_does_not_depend_on_z_and_what_is_not_kept_is_drawn_as_before(likelihood):
    torch.manual_seed(0)
    decoder = Decoder(replace(CONFIG, likelihood=likelihood)).double()
    mean, kept = torch.rand(2, 3, 32, 32).double() - 0.5, torch.rand(1, 2, 3, 32, 32).double() - 0.5
    with torch.no_grad():
        decoder.place.normal_()
        decoder.keeping.instead.normal_()
    z, other = torch.randn(2, 1, 2, CONFIG.latent_dim).double()
    for logit, same in ((50.0, True), (-2.0, False), (-500.0, False)):
        decoder.keeping.of_pixels.bias.data[0] = logit / GAIN
        (features, centre, _), (others, _, _) = (decoder(x, mean[0], kept=kept) for x in (z, other))
        assert torch.allclose(features, others, rtol=0, atol=1e-12) == same
        if same:
            torch.testing.assert_close(from_subimages(centre), kept)
    for found, drawn in zip((features, centre), decoder(z, mean[0])[:2], strict=True):
        torch.testing.assert_close(found, drawn)


def test_gradients_are_those_of_finite_differences():
    keeping = Keeping(4, 1, 6).double()
    torch.nn.init.normal_(keeping.instead)
    for linear in (keeping.of_features, keeping.of_pixels):
        torch.nn.init.normal_(linear.weight, std=0.03)
    sizes = (2, 36, 4), (36, 4), (2, 3, 6, 6), (3, 6, 6)
    features, place, frames, mean = (torch.randn(*size, dtype=torch.float64) for size in sizes)
    frames[1] = mean
    learnt = [features, place, *keeping.parameters()]

    def made(features, place, *_):
        return keeping(features, place, frames, mean)

    assert torch.autograd.gradcheck(made, [x.requires_grad_() for x in learnt])


def test_half_precision_keeps_the_precision_of_the_place():
    keeping, frames, mean = Keeping(4, 2, 8), torch.randn(2, 3, 8, 8), torch.randn(3, 8, 8)
    features, place = torch.randn(2, 16, 4).requires_grad_(), torch.randn(16, 4).requires_grad_()
    exact, _ = keeping(features, place, frames, mean)
    rounded = features.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, added = keeping(rounded, place, frames, mean)
    assert found.dtype == added.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02)
    (found.sum() + added.sum()).backward()
    assert rounded.grad.dtype == torch.bfloat16 and place.grad.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in keeping.parameters())


def test_a_frame_is_kept_by_later_frames_only(model):
    """Each later frame keeps some of the one before it, whatever its z is."""
    observations, actions = window(2, 4)
    outputs = model(observations, actions)
    z = outputs.posterior_mean
    for changed in range(4):
        others = outputs.state.kept.clone()
        others[:, changed] += 0.5
        whole, other = (model.likelihood(z, kept).mean() for kept in (outputs.state.kept, others))
        differ = (whole != other).flatten(2).any(2).any(0)
        assert differ.tolist() == [t == changed for t in range(4)]
    expected = torch.cat([model.mean_frame.expand(2, 1, -1, -1, -1), outputs.observations[:, :-1]], 1)
    assert torch.equal(outputs.state.kept, expected)


def test_imagined_frames_keep_the_last_frame_that_was_seen(model):
    observations, actions = window(2, 3)
    state = model.observe(observations, actions)
    assert torch.equal(state.kept[:, 1:], state.seen[:, :-1])
    future = model.imagine(state, torch.randn(2, 5, 3), samples=2)
    last = state.seen[:, -1:].repeat_interleave(2, 0)
    assert torch.equal(future.kept, last.expand(-1, 5, -1, -1, -1)) and future.seen is None
    assert future.kept.untyped_storage().nbytes() == last.untyped_storage().nbytes(), "one copy for all frames"
    further = model.imagine(future, torch.randn(4, 2, 3))
    assert torch.equal(further.kept, last.expand(-1, 2, -1, -1, -1))


def test_a_policy_can_look_at_what_it_imagines(model):
    observations, actions = window(2, 2)
    shapes = []

    def policy(state):
        shapes.append(model.decode(state).mean().shape)
        return torch.zeros(2, 3)

    model.imagine(model.observe(observations, actions), policy, horizon=3)
    assert shapes == [(2, 1, 3, 32, 32)] * 3


def test_filtering_keeps_what_observing_keeps(model):
    observations, actions = window(2, 4)
    whole, state = model.observe(observations, actions), model.initial_state(2)
    for t in range(4):
        state = model.filter(state, observations[:, t], actions[:, t - 1] if t else None)
        torch.testing.assert_close(model.decode(state).mean(), model.decode(whole.at(t)).mean(), rtol=1e-4, atol=1e-5)
