"""One process's flat buffers: what the optimiser steps is what the module computes with."""

import torch
from torch import nn

from aime_fast.balancing.layouts.flat import FlatLayout
from aime_fast.balancing.layouts.partitions import FlatGroup, Partition, WholePartition


class Parts(nn.Module):
    """Two parts that get buffers of their own, two that are too small for that, and odd sizes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(300, 301)
        self.second = nn.Linear(301, 333)
        self.small = nn.Linear(333, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.scale * self.small(self.second(self.first(x)))


def partitioned(seed=0):
    torch.manual_seed(seed)
    module = Parts()
    wide = [p for p in module.parameters() if p.ndim >= 2]
    rest = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.SGD([{"params": wide}, {"params": rest}], lr=0.5)
    return module, optimizer, WholePartition(module, optimizer)


def test_parameters_keep_their_values_and_follow_the_buffers():
    torch.manual_seed(0)
    before = Parts().state_dict()
    module, optimizer, _ = partitioned()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    for group in optimizer.param_groups:
        for flat in group["params"]:
            flat.data.fill_(7.0)
    assert all((parameter == 7.0).all() for parameter in module.parameters())


def test_large_parts_lie_apart_and_every_even_parameter_starts_a_cache_line():
    module, _, partition = partitioned()
    names = [name for name, _ in module.named_parameters()]
    held = [{names[index] for index in group.indices} for group in partition.groups]
    biases = {"first.bias", "second.bias", "small.bias", "scale"}
    assert held == [{"first.weight"}, {"second.weight"}, {"small.weight"}, biases]
    for group in partition.groups:
        assert all(offset % 32 == 0 for offset in group.offsets) and group.numel % 32 == 0
        ends = [offset + size for offset, size in zip(group.offsets, group.sizes, strict=True)]
        assert all(end <= start for end, start in zip(ends, [*group.offsets[1:], group.numel], strict=True))


def test_rows_hold_each_gradient_zeros_between_and_nothing_for_a_part_out_of_reach():
    module, _, partition = partitioned()
    parameters = list(module.parameters())
    gradients = [torch.randn_like(p) for p in parameters]
    rows = FlatLayout(parameters, partition)
    reached = [None if p is module.first.weight else g for p, g in zip(parameters, gradients, strict=True)]
    rows.add(0, reached, last=False)
    rows.add(0, gradients, last=True)
    rows.add(1, [None] * len(parameters), last=False)
    rows.add(1, reached, last=True)
    (both, partly), cuts = rows.vectors(), rows.cuts()
    assert [tensor is None for tensor in partly] == [True, False, False, False]
    for row, factors in ((both, {id(module.first.weight): 1.0}), (partly, {})):
        for flat, cut in zip(row, cuts, strict=True):
            if flat is None:
                continue
            left = flat.clone()
            for piece in cut.pieces:
                factor = factors.get(id(parameters[piece.index]), 2.0 if row is both else 1.0)
                found = flat[piece.at : piece.at + piece.numel]
                assert torch.equal(found, factor * gradients[piece.index].flatten())
                left[piece.at : piece.at + piece.numel] = 0
            assert not left.any()


def test_a_step_on_the_buffers_is_a_step_on_the_parameters():
    module, optimizer, partition = partitioned()
    torch.manual_seed(0)
    plain = Parts()
    stepped = torch.optim.SGD(plain.parameters(), lr=0.5)
    x = torch.randn(4, 300)
    plain(x).square().mean().backward()
    stepped.step()
    parameters = list(module.parameters())
    rows = FlatLayout(parameters, partition)
    rows.add(0, torch.autograd.grad(module(x).square().mean(), parameters), last=True)
    rows.update = rows.vectors()[0]
    rows.place(rows.update)
    optimizer.step()
    torch.testing.assert_close(module.state_dict(), plain.state_dict())
    rows.clear()
    assert all(flat.grad is None for group in optimizer.param_groups for flat in group["params"])


def test_an_empty_parameter_takes_no_place_where_each_is_cut():
    """As ZeRO-3 cuts them over two ranks: 3, 0 and 5 entries are parts of 2, 0 and 3."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3,), (2, 0), (5, 1))]
    partition = Partition()
    partition.groups = [FlatGroup((0, 1, 2), (0, 2, 2), (3, 0, 5), numel=10, cuts=2)]
    rows = FlatLayout(parameters, partition)
    rows.add(0, [torch.tensor([1.0, 2, 3]), torch.zeros(2, 0), torch.tensor([[4.0], [5], [6], [7], [8]])], last=True)
    ((flat,),) = rows.vectors()
    assert flat.tolist() == [1, 2, 4, 5, 6, 3, 0, 7, 8, 0]
