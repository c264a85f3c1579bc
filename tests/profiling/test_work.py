"""Operations and bytes are counted by hand, layer by layer, and belong to the phase in which they run."""

import pytest
import torch
from torch import nn

import aime_kernels  # noqa: F401 - registers the operators
from aime_fast.profiling.flops import operations
from aime_fast.profiling.phases import phase
from aime_fast.profiling.work import Arithmetic


def counted(call):
    with Arithmetic() as work, phase("here"):
        call()
    assert set(work.flops) <= {"here"}
    return work.flops["here"], work.bytes["here"]


def test_a_product_by_hand():
    one, other = torch.randn(3, 5), torch.randn(5, 7)
    flops, size = counted(lambda: one @ other)
    assert flops == 2 * 3 * 5 * 7
    assert size == 4 * (3 * 5 + 5 * 7 + 3 * 7)


@pytest.mark.parametrize("batch", [1, 6])
def test_a_layer_and_its_gradient(batch):
    layer, x = nn.Linear(5, 7), torch.randn(batch, 5, requires_grad=True)
    forward, _ = counted(lambda: layer(x))
    assert forward == 2 * batch * 5 * 7
    output = layer(x)
    backward, _ = counted(lambda: torch.autograd.grad(output.sum(), [x, layer.weight]))
    assert backward == 2 * forward


def test_a_convolution_and_its_gradient():
    layer, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 8, requires_grad=True)
    forward, _ = counted(lambda: layer(x))
    assert forward == 2 * (2 * 8 * 8) * 4 * (3 * 3 * 3)
    output = layer(x)
    backward, _ = counted(lambda: torch.autograd.grad(output.sum(), [x, layer.weight]))
    assert backward == 2 * forward


def test_a_recurrent_network_and_its_gradient():
    layer, x = nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3, requires_grad=True)
    forward, _ = counted(lambda: layer(x))
    assert forward == 2 * (2 * 5) * (4 * 4) * (3 + 4)
    output, _ = layer(x)
    backward, _ = counted(lambda: torch.autograd.grad(output.sum(), list(layer.parameters())))
    assert backward == 2 * forward


def test_attention_by_hand():
    q, k, v = (torch.randn(2, 4, length, 8) for length in (5, 9, 9))
    forward, _ = counted(lambda: nn.functional.scaled_dot_product_attention(q, k, v))
    assert forward == 2 * (2 * 2 * 4 * 5 * 9 * 8)


def test_pixels_by_hand():
    """Two frames of three pixels, four components: 120 operations for each of the three channels."""
    blocks, x = torch.randn(2, 4, 10, 3), torch.zeros(2, 3, 3)
    found = operations(torch.ops.aime_kernels.pixel_gradients.default, (x, x, blocks, torch.ones(2), 0.0), {}, None)
    assert found == 2 * 3 * 4 * 3 * 120


def test_views_are_free_and_an_expanded_tensor_is_small():
    x = torch.randn(1, 4)
    assert counted(lambda: x.expand(100, 4).t()) == (0, 0)
    wide = x.expand(100, 4)
    assert counted(lambda: wide + 1) == (0, 4 * 4 + 100 * 4 * 4)
