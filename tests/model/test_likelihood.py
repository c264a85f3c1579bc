"""The pixel likelihoods as linear maps of features, and the rearrangement of frames."""

import pytest
import torch
from torch import distributions
from torch.nn import functional as F

from aime_fast.model.parts.likelihood import FAMILIES, GAUSSIAN_STD
from aime_fast.model.parts.subimages import from_subimages, subimages

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
