"""PSNR and SSIM against their formulas in NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from aime_fast.evaluation.metrics import CEILING, moving_pixels, moving_psnr, psnr, ssim, unit_range


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_psnr_of_each_frame(lead):
    generator = np.random.default_rng(0)
    a, b = generator.random((*lead, 3, 9, 7)), generator.random((*lead, 3, 9, 7))
    expected = -10 * np.log10(((a - b) ** 2).mean(axis=(-3, -2, -1)))
    found = psnr(torch.from_numpy(2 * a - 1).float(), torch.from_numpy(2 * b - 1).float())
    assert found.shape == lead
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_a_known_error_has_a_known_psnr():
    frames = torch.zeros(2, 3, 8, 8)
    assert torch.allclose(psnr(frames + 0.2, frames), torch.full((2,), 20.0), atol=1e-4)
    assert torch.isinf(psnr(frames + 2.0, frames + 1.0)).all(), "values outside [-1, 1] are clipped"


def test_equal_frames_are_infinitely_good():
    frames = torch.rand(4, 3, 8, 8)
    assert torch.isinf(psnr(frames, frames)).all()


def test_the_ceiling_is_the_psnr_of_rounding():
    levels = np.random.default_rng(0).uniform(0, 255, 10**6)
    error = np.square((levels - levels.round()) / 255).mean()
    assert pytest.approx(-10 * np.log10(error), abs=0.02) == CEILING


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8))


def test_unit_range_clips():
    assert unit_range(torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_moving_psnr_is_that_of_the_moving_pixels_alone():
    draw = np.random.default_rng(0)
    a, b = draw.random((4, 3, 9, 7)), draw.random((4, 3, 9, 7))
    moving = draw.random((4, 9, 7)) < 0.2
    moving[3] = False
    expected = [
        -10 * np.log10(((x - y) ** 2)[:, mask].mean()) for x, y, mask in zip(a, b, moving, strict=True) if mask.any()
    ]
    found = moving_psnr(torch.from_numpy(2 * a - 1), torch.from_numpy(2 * b - 1), torch.from_numpy(moving))
    np.testing.assert_allclose(found[:3].numpy(), expected, rtol=1e-5)
    assert found[3].isnan()
    whole = torch.ones(4, 9, 7, dtype=torch.bool)
    frames = torch.from_numpy(2 * a - 1), torch.from_numpy(2 * b - 1)
    torch.testing.assert_close(moving_psnr(*frames, whole), psnr(*frames))


def test_a_pixel_moves_if_one_channel_differs_by_more_than_ten_levels():
    mean = torch.full((3, 2, 2), 100.0)
    frame = mean.clone()
    frame[1, 0, 0], frame[2, 0, 1], frame[0, 1, 0] = 110.0, 111.0, 89.0
    assert moving_pixels(frame, mean).tolist() == [[False, True], [True, False]]


def similarity(a, b):
    """Wang et al. (2004), equation 13, of one image [3, H, W] in [0, 1], in float64."""
    blurred = lambda x: np.stack([gaussian_filter(c, 1.5, mode="mirror", truncate=3.5) for c in x])  # noqa: E731
    m, n = blurred(a), blurred(b)
    v, w, both = blurred(a * a) - m * m, blurred(b * b) - n * n, blurred(a * b) - m * n
    return ((2 * m * n + 1e-4) * (2 * both + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4))).mean()


@pytest.mark.parametrize("lead", [(), (5,), (2, 35)])
def test_ssim_of_each_frame(lead):
    draw = np.random.default_rng(0)
    a = draw.random((*lead, 3, 17, 12))
    b = np.clip(a + draw.normal(0, 0.2, a.shape), 0, 1)
    expected = [similarity(x, y) for x, y in zip(a.reshape(-1, 3, 17, 12), b.reshape(-1, 3, 17, 12), strict=True)]
    found = ssim(torch.from_numpy(2 * a - 1).float(), torch.from_numpy(2 * b - 1).float())
    assert found.shape == lead
    # A variance is a difference of squares: float32 loses digits there.
    np.testing.assert_allclose(found.flatten().numpy(), expected, atol=2e-5)


def test_equal_frames_are_the_most_similar():
    frames = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(ssim(frames, frames), torch.ones(2))
    torch.testing.assert_close(ssim(torch.full_like(frames, 3), torch.ones_like(frames)), torch.ones(2))
