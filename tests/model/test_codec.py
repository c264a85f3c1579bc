"""The decoder's map at every pixel, and the rearrangement of frames."""

import pytest
import torch
from torch.nn import functional as F

from aime_fast.model.codec import _PixelMap, from_subimages, subimages


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 4, 2, 5, 7), (2, 8, 3, 4, 4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_map_at_every_pixel_is_a_convolution_of_width_one(shape, layout):
    n, inputs, outputs, height, width = shape
    features = torch.randn(n, inputs, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(outputs, inputs, dtype=torch.float64, requires_grad=True)
    leaves = [features.requires_grad_(), weight]
    found, expected = _PixelMap.apply(*leaves), F.conv2d(features, weight[:, :, None, None]).flatten(2)
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(out, leaves, pull) for out in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


def test_a_map_under_autocast_keeps_its_parameters_precision():
    leaves = [x.requires_grad_() for x in (torch.randn(2, 4, 3, 3), torch.randn(5, 4))]
    with torch.autocast("cpu", torch.bfloat16):
        out = _PixelMap.apply(*leaves)
    assert out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out.float().square().sum(), leaves)
    exact = torch.autograd.grad(_PixelMap.apply(*leaves).square().sum(), leaves)
    for rounded, true in zip(gradients, exact, strict=True):
        assert rounded.dtype == torch.float32
        # Eight bits of every factor, in sums of up to 45 products of either sign.
        torch.testing.assert_close(rounded, true, rtol=0.05, atol=0.05 * true.abs().max().item())


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_subimages_are_interleaved_and_come_back(patch):
    frames = torch.randn(2, 3, 8, 8)
    parts = subimages(frames, patch)
    for i in range(patch):
        for j in range(patch):
            assert torch.equal(parts[:, i * patch + j], frames[:, :, i::patch, j::patch])
    assert torch.equal(from_subimages(parts), frames)
