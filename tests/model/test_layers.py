"""Small blocks against torch's own functions in float64."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from aime_fast.config import preset_config
from aime_fast.model.parts.layers import joined, unit
from aime_fast.model.parts.perceiver import CausalPerceiver, PerceiverMemory, causal_bias


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_unit_is_normalize(dim, scale):
    """Value and gradient, also through a second function that reads it."""
    x = (scale * torch.randn(3, 5, 7, dtype=torch.float64)).requires_grad_()
    made, wanted = unit(x, dim), F.normalize(x, dim=dim)
    torch.testing.assert_close(made, wanted, rtol=1e-14, atol=0)
    weight = torch.randn_like(x)
    gradients = [torch.autograd.grad((y * weight).sin().sum(), x)[0] for y in (made, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12 / scale)


def test_unit_of_zero_and_of_less_than_the_least_length_is_finite():
    x = torch.tensor([[0.0, 0.0], [1e-30, 0.0]], requires_grad=True)
    made = unit(x, -1)
    (gradient,) = torch.autograd.grad(made.sum(), x)
    assert made.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
def test_joined_maps_are_the_maps_side_by_side(bias):
    x = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    layers = [torch.nn.Linear(7, width, bias, dtype=torch.float64) for width in (3, 1, 11)]
    leaves = [x, *[p for layer in layers for p in layer.parameters()]]
    made = joined(x, [layer.weight for layer in layers], [layer.bias for layer in layers] if bias else ())
    wanted = torch.cat([layer(x) for layer in layers], -1)
    torch.testing.assert_close(made, wanted)
    weight = torch.randn_like(wanted)
    found, expected = (torch.autograd.grad((y * weight).sum(), leaves) for y in (made, wanted))
    torch.testing.assert_close(found, expected)


def test_masks_of_windows_are_made_once_for_each_length():
    """Also first within inference mode: a later training step differentiates through the same tensors."""
    config = replace(preset_config("debug").model, action_dim=3)
    perceiver = CausalPerceiver(config)
    codes = torch.randn(1, 3, config.grid**2, config.code_dim)
    with torch.inference_mode():
        perceiver(codes)
    masks = perceiver._masks_of(3, codes.device)
    perceiver(codes).sum().backward()
    assert all(one is other for one, other in zip(masks, perceiver._masks_of(3, codes.device), strict=True))
    latents, heads = config.perceiver_latents, config.perceiver_heads
    assert torch.equal(masks[1], causal_bias(latents, latents, 0, 3, heads, codes.device))
    longer, _ = perceiver.extend(torch.cat([codes, codes], 1), PerceiverMemory())
    torch.testing.assert_close(longer[:, :3], perceiver(codes))
