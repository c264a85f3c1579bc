"""Counters against layers that are counted by hand, and storages against what torch itself allocates."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aime_fast.planning.counting import Counting
from aime_fast.planning.operators import Shape


def counted(call):
    with Counting() as counting:
        call()
    return {kernel.name.split(".")[1]: kernel for kernel in counting.kernels}


def test_a_linear_map_by_hand():
    x, weight, bias = torch.randn(7, 5), torch.randn(3, 5), torch.randn(3)
    kernel = counted(lambda: F.linear(x, weight, bias))["addmm"]
    assert kernel.flops == 2 * 7 * 5 * 3
    assert kernel.bytes == 4 * (7 * 5 + 3 * 5 + 3 + 7 * 3)
    assert kernel.shapes == (Shape(1, 7, 3, 5),)


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        (Shape(1, 128, 64, 128), True),  # one tile, and two cuts of 64
        (Shape(1, 128, 64, 127), False),
        (Shape(1, 128 * 64, 128, 4096), True),  # 128 tiles
        (Shape(1, 128 * 64 + 1, 128, 4096), False),
        (Shape(129, 4, 4, 4096), False),  # products side by side fill a card too
    ],
)
def test_products_that_leave_a_card_idle_are_cut_along_their_depth(shape, cut):
    assert shape.cut is cut


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 1, 8), (2, 1, 8), (4, 0, 8)])
def test_a_convolution_by_hand(stride, padding, size):
    side = (size + 2 * padding - 4) // stride + 1 if padding else (size - 4) // stride + 1
    x, weight = torch.randn(3, 5, size, size, requires_grad=True), torch.randn(6, 5, 4, 4, requires_grad=True)
    forward = 2 * 3 * side * side * 6 * 5 * 16
    found = counted(lambda: F.conv2d(x, weight, stride=stride, padding=padding).sum().backward())
    assert found["convolution"].flops == forward
    assert found["convolution_backward"].flops == 2 * forward
    assert len(found["convolution_backward"].shapes) == 2


def test_attention_by_hand():
    q, k, v = (torch.randn(2, 4, 6, 8, requires_grad=True) for _ in range(3))
    forward = 2 * 2 * 2 * 4 * 6 * 6 * 8
    found = counted(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert found["_scaled_dot_product_flash_attention_for_cpu"].flops == forward
    assert found["_scaled_dot_product_flash_attention_for_cpu_backward"].flops == 2.5 * forward, "it computes q k again"


def test_views_cost_nothing_and_what_is_repeated_is_read_once():
    x = torch.randn(4, 6)
    assert counted(lambda: x.view(6, 4).t()[1:].unsqueeze(0)) == {}
    row = torch.randn(1, 6)
    assert counted(lambda: x + row.expand(4, 6))["add"].bytes == 4 * (24 + 6 + 24)


def test_phases_are_the_innermost_ranges():
    with Counting() as counting:
        with torch.profiler.record_function("outer"):
            torch.ones(3) + 1
            with torch.profiler.record_function("inner"):
                torch.ones(3) * 2
        torch.ones(3) - 1
    phases = {kernel.name: kernel.phase for kernel in counting.kernels if "ones" not in kernel.name}
    assert phases == {"aten.add.Tensor": "outer", "aten.mul.Tensor": "inner", "aten.sub.Tensor": "elsewhere"}


def test_storages_live_as_long_as_torch_keeps_them():
    module = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))
    x = torch.randn(32, 16)
    with Counting() as counting:
        loss = module(x).sum()
        kept = sum(size for _, size in counting.events)
        loss.backward()
        del loss
        after = sum(size for _, size in counting.events)
    # tanh keeps its result [32, 64] for the backward pass; [32, 1] and the loss end with it.
    parameters = sum(p.numel() for p in module.parameters())
    assert kept >= 4 * (32 * 64 + 32 * 16 + parameters)
    assert after == 4 * (32 * 16 + 2 * parameters), "the input, the parameters and their gradients are left"
