"""The decoder: masks that share the cells among slots, slots that can be left out, and what it adds to the features."""

from dataclasses import replace

import pytest
import torch

from aime_fast.config import preset_config
from aime_fast.model.parts.decoder import LOCATION_GAIN, PLACE_GAIN, Decoder
from aime_fast.model.parts.slots import Pieces
from aime_fast.model.parts.subimages import subimages
from aime_kernels import logistic_mixture_mean

CONFIG = replace(preset_config("debug").model, num_slots=3, latent_dim=14, image_size=64)
MEAN = torch.rand(3, 64, 64) - 0.5
PIECES = Pieces.of(CONFIG)


def decoder(**changes):
    """A decoder with features of each place."""
    made = Decoder(replace(CONFIG, **changes))
    with torch.no_grad():
        made.place.normal_()
    return made


def latents(batch=2, frames=3):
    return torch.randn(batch, frames, CONFIG.latent_dim)


def moved(z, slot):
    """z with another piece of one slot."""
    z, start = z.clone(), PIECES.shared + slot * PIECES.slot
    z[..., start : start + PIECES.slot] += 1
    return z


def test_masks_are_shares_of_each_cell():
    features, centre, masks = decoder()(latents(), MEAN)
    assert masks.shape == (2, 3, CONFIG.num_slots, CONFIG.grid**2)
    torch.testing.assert_close(masks.sum(2), torch.ones(2, 3, CONFIG.grid**2))
    assert features.shape == (2, 3, (4 * CONFIG.grid) ** 2, CONFIG.decoder_width)
    for image in centre.flatten(0, 1):
        assert torch.equal(image, subimages(MEAN, CONFIG.image_size // (4 * CONFIG.grid)))


@pytest.mark.parametrize("without", [(0,), (2,), (0, 1)])
def test_the_slots_that_are_left_share_the_cells_of_those_that_are_left_out(without):
    made, z = decoder(), latents()
    kept = [s for s in range(CONFIG.num_slots) if s not in without]
    _, _, masks = made(z, MEAN)
    features, _, fewer = made(z, MEAN, without)
    assert not fewer[:, :, list(without)].any()
    torch.testing.assert_close(fewer[:, :, kept], masks[:, :, kept] / masks[:, :, kept].sum(2, keepdim=True))
    for slot in range(CONFIG.num_slots):
        other, _, _ = made(moved(z, slot), MEAN, without)
        assert torch.equal(other, features) == (slot in without)


def test_one_piece_moves_its_own_slots_logit_and_no_other():
    """Ratios of the other masks are those of before."""
    made, z = decoder(), latents()
    before, after = made(z, MEAN)[2], made(moved(z, 1), MEAN)[2]
    torch.testing.assert_close(after[:, :, 0] / after[:, :, 2], before[:, :, 0] / before[:, :, 2], rtol=1e-4, atol=0)
    assert (after[:, :, 1] - before[:, :, 1]).abs().min() > 0


def test_what_depends_on_the_place_alone_is_added_to_every_frame():
    made, z = decoder(), latents()
    features, _, _ = made(z, MEAN)
    place = made.place.detach().clone()
    with torch.no_grad():
        made.place.zero_()
    added = (features - made(z, MEAN)[0]).unflatten(2, place.shape[1:]).movedim(-1, 2)
    torch.testing.assert_close(added, (PLACE_GAIN * place).expand_as(added), rtol=1e-5, atol=1e-5)


def test_a_frame_is_decoded_from_its_own_z():
    made, z = decoder(), latents()
    changed = z.clone()
    changed[1, 2] += 1
    before, after = made(z, MEAN), made(changed, MEAN)
    same = torch.ones(2, 3, dtype=torch.bool)
    same[1, 2] = False
    for one, other in ((before[0], after[0]), (before[2], after[2])):
        assert torch.equal((one == other).flatten(2).all(2), same)


@pytest.mark.parametrize("mixtures", [1, 3])
def test_of_the_mixtures_parameters_the_locations_have_a_small_gain(mixtures):
    """A location is what moves the expectation by as much as it moves."""
    made = decoder(likelihood="logistic_mixture", num_mixtures=mixtures)
    gains = (made.head_weight / made.head.weight).detach()[:, 0].view(-1, 10 * mixtures)
    assert (
        gains.shape[0] == made.patch**2 and ((gains - LOCATION_GAIN).abs().lt(1e-6) | gains.sub(1).abs().lt(1e-6)).all()
    )
    location = (gains[0] < 0.5).float()
    assert location.sum() == 3 * mixtures
    parameters = torch.randn(2, 10 * mixtures, 5, 5)
    shifted = logistic_mixture_mean(parameters + 0.1 * location[:, None, None])
    torch.testing.assert_close(shifted, logistic_mixture_mean(parameters) + 0.1, rtol=1e-4, atol=1e-5)


def test_all_parameters_of_a_gaussian_are_locations():
    made = decoder(likelihood="gaussian")
    torch.testing.assert_close(made.head_weight, LOCATION_GAIN * made.head.weight)
