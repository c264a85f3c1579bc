"""What is kept of older frames: which frame it is, how it is moved, and what an imagined frame may see of it."""

from dataclasses import replace

import pytest
import torch
from scipy.ndimage import map_coordinates

from aime_fast.config import preset_config
from aime_fast.model.parts.keeping import Keeping, centres, moved, older
from aime_fast.model.parts.subimages import from_subimages, subimages
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder

CONFIG = replace(preset_config("debug").model, action_dim=3, image_size=32)


@pytest.fixture
def model():
    """One that keeps much: a third, from beside."""
    torch.manual_seed(0)
    made = DPGMMVariationalRecurrentAutoencoder.from_config(CONFIG).eval()
    made.decoder.keeping.choose.bias.data.copy_(torch.tensor([-0.07, 0.15, 0.0]))
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


def test_an_eighth_is_kept_at_first_and_the_whole_frame_where_all_is():
    keeping, mean = Keeping(8, 2, 16), torch.randn(3, 16, 16)
    features, frames = torch.randn(4, 8, 8, 8), torch.randn(4, 3, 16, 16)
    share = torch.sigmoid(torch.tensor(-2.0))
    torch.testing.assert_close(keeping(features, frames, mean), share * subimages(frames - mean, 2))
    keeping.choose.bias.data[0] = 50.0
    torch.testing.assert_close(mean + from_subimages(keeping(features, frames, mean)), frames)


def test_gradients_reach_features_and_the_choice():
    keeping = Keeping(4, 1, 6).double()
    torch.nn.init.normal_(keeping.choose.weight, std=0.3)
    features, frames, mean = (
        torch.randn(*size, dtype=torch.float64) for size in ((2, 4, 6, 6), (2, 3, 6, 6), (3, 6, 6))
    )
    assert torch.autograd.gradcheck(lambda x: keeping(x, frames, mean), features.requires_grad_())
    keeping(features, frames, mean).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in keeping.parameters())


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
