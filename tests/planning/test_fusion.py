"""The rule for a compiled step, on chains that are joined by hand."""

import pytest
import torch
from torch import nn

from aime_fast.planning.counting import Counting
from aime_fast.planning.fusion import LOOP, compiled
from aime_fast.planning.recurrent import AsOneOperator

ROWS, COLUMNS = 5, 7
WHOLE = 4 * ROWS * COLUMNS
"""Bytes of [ROWS, COLUMNS]."""


def kernels(call, phase="forward"):
    x = torch.randn(ROWS, COLUMNS)
    with Counting() as counting, torch.profiler.record_function(phase):
        call(x)
    return compiled(counting.kernels)


def test_a_chain_reads_once_and_writes_once():
    (loop,) = kernels(lambda x: ((x + 1) * x).relu())
    assert (loop.name, loop.count) == (LOOP, 1)
    assert loop.bytes == 2 * WHOLE


def test_what_is_read_later_is_written():
    def call(x):
        kept = x + 1
        kept.relu().sum(1)
        return kept @ torch.ones(COLUMNS, 3)

    loop = kernels(call)[0]
    assert loop.bytes == WHOLE + WHOLE + 4 * ROWS, "x in; x + 1 and the sums out"


def test_a_reduction_ends_a_chain():
    first, second = kernels(lambda x: (x * 2).sum(1).exp())
    assert (first.name, first.bytes) == (LOOP, WHOLE + 4 * ROWS)
    assert (second.name, second.bytes) == ("aten.exp.default", 2 * 4 * ROWS)


def test_products_stay_and_part_chains():
    names = [kernel.name for kernel in kernels(lambda x: ((x + 1).relu() @ x.t()).exp().neg())]
    assert names == [LOOP, "aten.mm.default", LOOP]


@pytest.mark.parametrize("phase", ["step", "averages"])
def test_what_is_not_compiled_stays(phase):
    assert len(kernels(lambda x: (x + 1).relu(), phase)) == 2


def test_calls_of_several_kernels_keep_the_others():
    layer = nn.LayerNorm(COLUMNS)
    gradient = kernels(lambda x: layer(x.requires_grad_()).sum().backward())
    assert sum(kernel.count for kernel in gradient) > len(gradient)


def test_a_recurrent_network_by_hand():
    """Each of its matrices multiplies each row once forward, and twice in the backward pass."""
    layer = nn.LSTM(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3, requires_grad=True)
    with Counting() as counting, AsOneOperator(counting):
        layer(x)[0].sum().backward()
    flops = {kernel.name: kernel.flops for kernel in counting.kernels if kernel.flops}
    forward = 2 * (2 * 5) * (4 * 4) * (3 + 4)
    assert flops == {"recurrent": forward, "recurrent_backward": 2 * forward}
