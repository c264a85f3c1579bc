"""Groups of parameters: their segments in any layout, Gram matrices that sum to the whole, and what each group gets."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aime_fast.balancing.balancer import Balancer
from aime_fast.balancing.groups import make_groups
from aime_fast.balancing.layouts import flat
from aime_fast.balancing.layouts.cut import Cut, Piece
from aime_fast.balancing.layouts.flat import FlatLayout
from aime_fast.balancing.layouts.layout import segments
from aime_fast.balancing.layouts.partitions import FlatGroup, WholePartition
from aime_fast.balancing.solvers.registry import SOLVERS
from aime_fast.config import BalancingConfig
from aime_fast.errors import UserError

TASKS = 3


class Parts(nn.Module):
    """Two children large enough for buffers of their own, a small one, and a parameter of the model itself."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(300, 301)
        self.head = nn.Linear(301, 333)
        self.side = nn.Linear(33, 3)
        self.scale = nn.Parameter(torch.tensor([2.0, 1.0]))


REACH = {"trunk": {0, 1, 2}, "head": {0, 1}, "side": {2}, "scale": {1}}


def gradients(module, task, seed=0):
    """Task gradients; none where the task does not reach the child."""
    generator = torch.Generator().manual_seed(10 * seed + task)
    return [
        torch.randn(p.shape, generator=generator) if task in REACH[name.partition(".")[0]] else None
        for name, p in module.named_parameters()
    ]


def one_process(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    partition = WholePartition(module, optimizer)
    return FlatLayout(list(module.parameters()), partition)


def add(layout, module, seed=0):
    for task in range(TASKS):
        layout.add(task, gradients(module, task, seed), last=True)


def balancer_of(module, groups, solver="rotation"):
    names = [name for name, _ in module.named_parameters()]
    config = BalancingConfig(solver=solver, groups=groups)
    return Balancer(config, one_process(module), names, [str(task) for task in range(TASKS)])


def flattened(layout, vector):
    """A vector of a layout in the order of the parameters."""
    parts = [torch.zeros(p.numel()) for p in layout.parameters]
    for tensor, cut in zip(vector, layout.cuts(), strict=True):
        for piece in cut.pieces if tensor is not None else ():
            parts[piece.index][piece.start : piece.start + piece.numel] = tensor[piece.at : piece.at + piece.numel]
    return parts


def test_groups_by_name_and_by_reach():
    names = ["trunk.weight", "trunk.bias", "head.weight", "scale", "head.bias"]
    reach = [{0, 1}, {0, 1, 2}, {1}, {0, 2}, set()]
    assert make_groups("all", names, reach) == ([0, 0, 0, 0, 0], 1, 1)
    assert make_groups("module", names, reach) == ([0, 0, 1, 2, 1], 3, 3)
    assert make_groups("shared", names, reach) == ([0, 0, 1, 0, 1], 2, 1)
    with pytest.raises(UserError, match=r"unknown --balancing.groups 'modul'; did you mean 'module'\? choose from all"):
        make_groups("modul", names, reach)


def test_neighbours_of_one_group_are_one_segment_and_padding_joins_what_is_before_it():
    cuts = [
        Cut((40,), (Piece(0, 0, 0, 5), Piece(1, 0, 8, 10), Piece(2, 3, 20, 4), Piece(0, 5, 24, 9))),
        Cut((6,), ()),
        Cut((7,), (Piece(2, 0, 0, 7),)),
    ]
    assert segments(cuts, [0, 0, 1], 3) == [[(0, 0, 20), (0, 24, 40)], [(0, 20, 24), (2, 0, 7)], []]


@given(world_size=st.sampled_from([1, 2, 3, 4]), stage=st.sampled_from([2, 3]), seed=st.integers(0, 100))
def test_grams_of_modules_sum_to_that_of_all_under_shards(world_size, stage, seed):
    module = Parts()
    parameters = list(module.parameters())
    sizes = [p.numel() for p in parameters]
    cuts = world_size if stage == 3 else 1
    starts = torch.tensor([0] + [-(-size // cuts) for size in sizes]).cumsum(0).tolist()
    numel = starts[-1] * cuts if stage == 3 else -(-starts[-1] // world_size) * world_size
    buffer = FlatGroup(tuple(range(len(sizes))), tuple(starts[:-1]), tuple(sizes), numel, cuts)
    group_of = make_groups("module", [name for name, _ in module.named_parameters()], []).group_of
    grams = torch.zeros(4, TASKS, TASKS, dtype=torch.float64)
    whole = torch.zeros(TASKS, TASKS, dtype=torch.float64)
    for rank in range(world_size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flat.dist, "get_rank", lambda rank=rank: rank)
            layout = FlatLayout(parameters, SimpleNamespace(groups=[buffer]), world_size)
            layout.total = lambda grams, losses: (grams, losses)
            for task in range(TASKS):
                (flat_gradient,) = layout._flatten(task, gradients(module, task, seed), torch.float32)
                layout._vectors[task] = [flat_gradient.view(world_size, -1)[rank].contiguous()]
            whole += layout.gram(False)[0][0]
            layout.divide(group_of, 4)
            grams += layout.gram(False)[0]
    torch.testing.assert_close(grams.sum(0), whole, rtol=1e-12, atol=1e-9)
    for number, child in enumerate(("trunk", "head", "side", "scale")):
        parts = [
            torch.cat(
                [
                    torch.zeros(1) if g is None else g.flatten()
                    for g, group in zip(gradients(module, task, seed), group_of, strict=True)
                    if group == number
                ]
            ).norm()
            for task in range(TASKS)
        ]
        torch.testing.assert_close(grams[number].diagonal().sqrt().float(), torch.stack(parts), msg=child)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_module_gets_what_it_gets_alone(solver):
    module = Parts()
    balancer, losses = balancer_of(module, "module", solver), torch.ones(TASKS, dtype=torch.float64)
    alone = {child: balancer_of(module, "all", solver) for child in ("trunk", "side")}
    for seed in range(3):
        add(balancer.layout, module, seed)
        update = flattened(balancer.layout, balancer.balance(losses).update)
        balancer.layout.clear()
        for child, own in alone.items():
            mine = [name.startswith(child) for name, _ in module.named_parameters()]
            for task in range(TASKS):
                parts = [g if m else None for g, m in zip(gradients(module, task, seed), mine, strict=True)]
                own.layout.add(task, parts, last=True)
            wanted = flattened(own.layout, own.balance(losses).update)
            own.layout.clear()
            for found, want, m in zip(update, wanted, mine, strict=True):
                if m:
                    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-7)


def test_private_parameters_take_their_one_gradient_and_shared_ones_are_balanced():
    module = Parts()
    balancer = balancer_of(module, "shared")
    add(balancer.layout, module)
    report = balancer.balance()
    update = dict(zip(balancer.parameters, flattened(balancer.layout, report.update), strict=True))
    given = [dict(zip(balancer.parameters, gradients(module, task), strict=True)) for task in range(TASKS)]
    assert torch.equal(update["side.weight"], given[2]["side.weight"].flatten())
    assert torch.equal(update["scale"], given[1]["scale"].flatten())
    shared = torch.cat([value for name, value in update.items() if name.startswith(("trunk", "head"))])
    assert 0 < shared.norm() <= 1
    torch.testing.assert_close(report.update_norm, torch.cat(list(update.values())).norm().double())
    assert not any(
        v.any()
        for v, n in zip(flattened(balancer.layout, balancer.layout.direction), update, strict=True)
        if n.startswith(("side", "scale"))
    )


@pytest.mark.parametrize("groups", ["module", "shared"])
def test_clipping_is_by_the_norm_over_all_groups(groups):
    module = Parts()
    plain, clipped = balancer_of(module, groups), balancer_of(module, groups)
    for balancer, limit in ((plain, None), (clipped, 0.25)):
        add(balancer.layout, module)
        balancer.report = balancer.balance(max_norm=limit)
    whole, cut = (torch.cat(flattened(b.layout, b.report.update)) for b in (plain, clipped))
    assert plain.report.update_norm == clipped.report.update_norm
    torch.testing.assert_close(cut, whole * 0.25 / whole.norm(), rtol=1e-4, atol=1e-6)


def test_groups_with_nothing_to_balance_are_left_at_zero():
    module = Parts()
    balancer = balancer_of(module, "module")
    for task in range(TASKS):
        trunk = zip(balancer.parameters, gradients(module, task), strict=True)
        balancer.layout.add(task, [g if name.startswith("trunk") else None for name, g in trunk], last=True)
    report = balancer.balance()
    assert report.finite
    update = zip(balancer.parameters, flattened(balancer.layout, report.update), strict=True)
    assert [name for name, part in update if part.any()] == ["trunk.weight", "trunk.bias"]
