"""The share of the possible effect, against a world whose answer is known."""

import numpy as np
import pytest
import torch

from aime_fast.evaluation.share import frame_distance, possible_loss, share_of_possible


def decibels(error):
    return -10 * torch.log10(error)


def test_the_possible_loss_is_what_a_perfect_model_with_noise_loses():
    """Frames in [0, 1]: the model's prediction is a true future plus noise of 31 dB, with right or wrong actions."""
    draw = torch.Generator().manual_seed(0)
    truth, other = torch.rand(2, 3, 64, 64, 40, generator=draw, dtype=torch.float64)
    noise = 10 ** (-31 / 20) * torch.randn(truth.shape, generator=draw, dtype=torch.float64)
    right, wrong = ((future + noise - truth).square().mean() for future in (truth, other))
    distance = (truth - other).square().mean()
    lost = decibels(right) - decibels(wrong)
    # Half a million pixels: the squared errors are known to about 0.2 %.
    assert possible_loss(distance, 31.0).item() == pytest.approx(-(decibels(wrong) - decibels(right)).item(), abs=0.02)
    assert lost.item() > 15


def test_equal_futures_cannot_cost_anything():
    assert possible_loss(torch.zeros(3), 31.0).tolist() == [0.0, 0.0, 0.0]


def test_a_worse_reconstruction_leaves_less_to_lose():
    losses = [possible_loss(torch.tensor(0.01), r).item() for r in (20.0, 25.0, 31.0, 40.0)]
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(10 * np.log10(2))


@pytest.mark.parametrize("heeded", [0.0, 0.4, 1.0])
def test_the_share_is_the_part_of_the_loss_that_shows(heeded):
    draw = torch.Generator().manual_seed(1)
    possible = possible_loss(torch.rand(30, 4, generator=draw) * 0.02, 31.0)
    own = 31 + torch.randn(30, 4, generator=draw, dtype=torch.float64)
    found = share_of_possible(own, own - heeded * possible, possible, np.arange(30) // 5)
    for estimate in found:
        assert estimate.mean == pytest.approx(heeded, abs=1e-9)
        assert (estimate.low, estimate.high) == pytest.approx((heeded, heeded), abs=1e-9)


def test_windows_with_more_to_lose_count_more():
    """It is a ratio of means: a window in which nothing can be lost has no say."""
    own, other = torch.tensor([[30.0], [30.0]]).double(), torch.tensor([[25.0], [30.0]]).double()
    found = share_of_possible(own, other, torch.tensor([[10.0], [0.0]]).double(), np.array([0, 1]))
    assert found[0].mean == pytest.approx(0.5)


def test_the_distance_of_frames():
    a = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    b = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    expected = np.square((a.astype(float) - b) / 255).mean((-3, -2, -1))
    np.testing.assert_allclose(frame_distance(torch.from_numpy(a), torch.from_numpy(b)).numpy(), expected)
