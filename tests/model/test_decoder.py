"""The decoder's slots and masks, the pixel likelihoods as linear maps of features, the rearrangement of frames."""

from dataclasses import replace

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from aime_fast.config import preset_config
from aime_fast.model.parts.decoder import LOCATION_GAIN, Decoder, from_subimages, subimages
from aime_fast.model.parts.likelihood import FAMILIES, GAUSSIAN_STD
from aime_fast.model.parts.slots import PerSlot, Pieces

CHANNELS = {"logistic_mixture": 20, "gaussian": 3}


def likelihood(family, n=3, frames=2, images=4, side=5, features=6, dtype=torch.float32):
    """A distribution over n x frames frames, and some frames as sub-images."""
    weight = (0.3 * torch.randn(images * CHANNELS[family], features, dtype=dtype)).requires_grad_()
    centre = 0.3 * torch.randn(n, frames, images, 3, side, side, dtype=dtype)
    seen = torch.randn(n, frames, side * side, features, dtype=dtype)
    made = FAMILIES[family](seen.requires_grad_(), weight, centre.requires_grad_())
    return made, torch.randint(0, 256, centre.shape) * (2 / 255) - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_a_convolution_of_width_one(family):
    made, pixels = likelihood(family)
    grid = made.features.mT.flatten(0, 1).unflatten(2, pixels.shape[4:])
    expected = F.conv2d(grid, made.weight[:, :, None, None]).unflatten(1, (4, -1))
    torch.testing.assert_close(made.parameters(), expected.unflatten(0, pixels.shape[:2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_weighs_the_nats_and_the_error_of_the_expectation(family):
    made, pixels = likelihood(family)
    leaves, of_nats = (made.features, made.weight, made.centre), torch.rand(3, 2)
    loss, nats, error = made.loss(pixels, of_nats, 0.7)
    wanted = (made.expectation() - pixels).square().sum((2, 3, 4, 5))
    torch.testing.assert_close(error, wanted.detach())
    torch.testing.assert_close(loss, (of_nats * nats).sum() + 0.7 * error.sum())
    assert loss.requires_grad and not nats.requires_grad and not error.requires_grad
    pulls = [
        torch.autograd.grad(made.loss(pixels, weights, of)[0], leaves)
        for weights, of in ((of_nats, 0.0), (0 * of_nats, 0.7))
    ]
    for found, *parts in zip(torch.autograd.grad(loss, leaves), *pulls, strict=True):
        torch.testing.assert_close(found, sum(parts), rtol=1e-4, atol=1e-5 * found.abs().max().item())
    for found, exact in zip(pulls[1], torch.autograd.grad(0.7 * wanted.sum(), leaves), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


def test_nats_of_a_gaussian_are_those_of_its_density():
    made, pixels = likelihood("gaussian")
    exact = -distributions.Normal(made.expectation(), GAUSSIAN_STD).log_prob(pixels).sum((2, 3, 4, 5))
    torch.testing.assert_close(made.loss(pixels, torch.ones(3, 2), 0.0)[1], exact)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_subimages_are_interleaved_and_invertible(patch):
    frames = torch.randn(2, 3, 8, 8)
    parts = subimages(frames, patch)
    for i in range(patch):
        for j in range(patch):
            assert torch.equal(parts[:, i * patch + j], frames[:, :, i::patch, j::patch])
    assert torch.equal(from_subimages(parts), frames)


CONFIG = replace(preset_config("debug").model, action_dim=2, image_size=32, latent_dim=14)


def decoder(**changes):
    torch.manual_seed(0)
    return Decoder(replace(CONFIG, **changes)), torch.zeros(3, 32, 32)


@pytest.mark.parametrize("latent, slots, sizes", [(16, 3, (4, 4)), (14, 3, (5, 3)), (2, 1, (1, 1)), (7, 6, (1, 1))])
def test_the_pieces_of_z_are_equal_but_for_the_rest(latent, slots, sizes):
    pieces = Pieces.of(replace(CONFIG, latent_dim=latent, num_slots=slots))
    assert pieces == sizes
    z = torch.randn(2, latent)
    shared, own = pieces.split(z, slots)
    assert torch.equal(torch.cat([shared, own.flatten(1)], 1), z)


def test_a_layer_per_slot_is_a_linear_map_for_each():
    layer, x = PerSlot(3, 4, 5, gain=2.0), torch.randn(7, 3, 4)
    with torch.no_grad():
        layer.bias.normal_()
    alone = [F.linear(x[:, s], layer.weight[s].T, layer.bias[s, 0]) for s in range(3)]
    torch.testing.assert_close(layer(x), torch.stack(alone, 1))


def test_masks_share_out_every_cell_and_a_slot_can_be_left_out():
    made, mean_frame = decoder()
    z = torch.randn(2, 3, CONFIG.latent_dim)
    _, centre, masks = made(z, mean_frame)
    assert masks.shape == (2, 3, CONFIG.num_slots, CONFIG.grid**2)
    torch.testing.assert_close(masks.sum(2), torch.ones(2, 3, CONFIG.grid**2))
    _, _, others = made(z, mean_frame, without=(1,))
    assert not others[:, :, 1].any()
    torch.testing.assert_close(others[:, :, [0, 2]], masks[:, :, [0, 2]] / (1 - masks[:, :, 1:2]), rtol=1e-4, atol=1e-5)
    assert centre.shape == (2, 3, made.patch**2, 3, 32 // made.patch, 32 // made.patch)


def test_without_a_slot_its_piece_of_z_has_no_effect():
    made, mean_frame = decoder()
    z = torch.randn(1, 2, CONFIG.latent_dim)
    changed = z.clone()
    start = made.pieces.shared + 2 * made.pieces.slot
    changed[..., start : start + made.pieces.slot] += 1
    assert not torch.allclose(made(z, mean_frame)[0], made(changed, mean_frame)[0])
    torch.testing.assert_close(made(z, mean_frame, (2,))[0], made(changed, mean_frame, (2,))[0])


def test_features_of_a_place_are_added_to_every_frame():
    made, mean_frame = decoder()
    z = torch.randn(1, 2, CONFIG.latent_dim)
    before = made(z, mean_frame)[0]
    with torch.no_grad():
        made.place.normal_()
    added = made(z, mean_frame)[0] - before
    torch.testing.assert_close(added[0, 0], added[0, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(added[0, 0].T.unflatten(1, made.place.shape[1:]), 10 * made.place, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family, locations", [("logistic_mixture", [1, 2, 3]), ("gaussian", [0, 1, 2])])
def test_only_locations_have_the_small_gain(family, locations):
    made, _ = decoder(likelihood=family)
    gains = (made.head_weight / made.head.weight).mean(1).view(made.patch**2, -1)
    expected = torch.ones(10 if family == "logistic_mixture" else 3)
    expected[locations] = LOCATION_GAIN
    torch.testing.assert_close(gains, expected.repeat(made.patch**2, gains.shape[1] // len(expected)))
