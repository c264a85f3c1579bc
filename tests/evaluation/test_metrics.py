"""PSNR against its formula in NumPy."""

import numpy as np
import pytest
import torch

from aime_fast.evaluation.metrics import psnr, unit_range


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


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8))


def test_unit_range_clips():
    assert unit_range(torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
