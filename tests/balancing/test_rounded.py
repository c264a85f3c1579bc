"""Floats of 8 bits with a power of two a block: against float64, torch's own cast and the promised bound."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from aime_fast.balancing.layouts.communication import sent_bytes
from aime_fast.balancing.layouts.partitions import WholePartition
from aime_fast.balancing.layouts.rounded import BLOCK, CODE, packed, unpacked


def numbers(blocks=500, seed=0):
    """Blocks of 12 orders of magnitude; entries of a block over four more."""
    generator = torch.Generator().manual_seed(seed)
    size = 10.0 ** (12 * torch.rand(blocks, 1, generator=generator) - 9)
    within = 10.0 ** (-4 * torch.rand(blocks, BLOCK, generator=generator))
    return (size * within * torch.randn(blocks, BLOCK, generator=generator)).flatten()


def round_trip(flat):
    return unpacked(packed(flat), 1)


def largest(flat):
    """Of each entry's block, for each entry."""
    return flat.view(-1, BLOCK).abs().amax(1, True).expand(-1, BLOCK).flatten()


def test_a_block_is_torchs_cast_of_it_by_a_power_of_two():
    flat = numbers()
    _, exponents = np.frexp(largest(flat).double().numpy())
    scale = torch.from_numpy(np.ldexp(1.0, exponents - 8))  # the largest becomes at least 128, less than 256
    wanted = (flat.double() / scale).float().to(CODE).double() * scale
    assert torch.equal(round_trip(flat).double(), wanted)


def test_the_bound():
    flat = numbers(seed=1)
    apart, top = (round_trip(flat) - flat).abs(), largest(flat)
    large = flat.abs() >= 2.0**-13 * top
    assert 2.0**-4.2 < (apart / flat.abs())[large].max() <= 2.0**-4
    assert 0.5 < large.float().mean() < 1
    assert (apart / top)[~large].max() <= 2.0**-17


def test_values_that_have_a_code_stay():
    codes = torch.arange(256, dtype=torch.uint8).view(CODE).float()
    codes = codes[codes.isfinite() & (codes.abs() < 256)]
    flat = torch.cat([codes, codes.new_zeros(-len(codes) % BLOCK)]).view(-1, BLOCK)
    flat[:, 0] = 240.0  # so that each block's power of two is 1
    for power in (-100, -20, 0, 100):
        assert torch.equal(round_trip(flat.flatten() * 2.0**power), flat.flatten() * 2.0**power)


@pytest.mark.parametrize("alone", [0.0, 1e-45, -1e-45, 1e-38, 1.2e-38, 3e38, -3e38, 1.0])
def test_extreme_blocks_stay_finite_and_zeros_stay_zeros(alone):
    flat = torch.zeros(3 * BLOCK)
    flat[BLOCK + 5] = alone
    found = round_trip(flat)
    assert found.isfinite().all()
    assert not found[torch.arange(len(flat)) != BLOCK + 5].any()
    assert abs(found[BLOCK + 5] - flat[BLOCK + 5]) <= 2.0**-4 * abs(alone) or abs(alone) < 2.0**-132


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_and_spoils_no_other_block(bad):
    flat = numbers(blocks=3)
    flat[BLOCK + 5] = bad
    found = round_trip(flat)
    assert not found[BLOCK + 5].isfinite()
    wanted = round_trip(numbers(blocks=3))
    for block in (slice(0, BLOCK), slice(2 * BLOCK, None)):
        assert torch.equal(found[block], wanted[block])


def test_messages_of_ranks_come_one_after_the_other():
    parts = [numbers(blocks=7, seed=seed) for seed in range(3)]
    messages = torch.cat([packed(part) for part in parts])
    assert messages.dtype == torch.uint8 and len(messages) == 3 * 7 * BLOCK * sent_bytes(CODE)
    assert torch.equal(unpacked(messages, 3), torch.cat([round_trip(part) for part in parts]))
    with pytest.raises(RuntimeError):
        packed(numbers(blocks=2)[1:])


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_shards_of_odd_parameters_are_whole_blocks(ranks):
    """And the padding, which blocks may share with parameters, stays zero."""
    module = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 300), nn.Linear(300, 1))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for buffer in WholePartition(module, optimizer, ranks * BLOCK).groups:
        flat = torch.zeros(buffer.numel)
        views, padding = buffer.views(flat)
        for view in (view for pieces in views for view in pieces):
            view.copy_(torch.randn(len(view)))
        found = torch.cat([round_trip(shard) for shard in flat.chunk(ranks)])
        assert not found[flat == 0].any()
        assert (found - flat).norm() < 2.0**-4 * flat.norm()
        assert sum(len(part) for part in padding) < (ranks + 1) * BLOCK + 32 * len(buffer.indices)


@pytest.mark.gpu
def test_a_card_makes_the_same_codes_also_in_a_graph():
    flat = torch.cat([numbers(), torch.zeros(BLOCK), torch.full((BLOCK,), 1e-41)])
    there, wanted = flat.cuda(), packed(flat)
    assert torch.equal(packed(there).cpu(), wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = unpacked(packed(there), 1)
    there.neg_()
    graph.replay()
    assert torch.equal(found.cpu(), -unpacked(wanted, 1))
