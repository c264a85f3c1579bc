"""Which tasks reach which parameters: the trial pass beside real steps, and what follows from it."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy import Toy, toy_reach

from aime_fast.balancing.layouts import reach as reaches
from aime_fast.balancing.layouts.flat import FlatLayout
from aime_fast.balancing.layouts.partitions import WholePartition, divide
from aime_fast.config import preset_config
from aime_fast.data.batch import Batch
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.tasks.registry import TASKS, make_tasks
from aime_fast.training.reach import tasks_reaching

torch.set_num_threads(1)


def opened(tasks, **model):
    torch.manual_seed(0)
    config = replace(preset_config("debug").model, action_dim=3, **model)
    world, made = DPGMMVariationalRecurrentAutoencoder.from_config(config), make_tasks(tasks)
    world.add_heads(made)
    return world, LossAggregator(tasks=made)


def gradients(world, aggregator, frames, key):
    """Each task's gradients on two random windows, by parameter."""
    generator = torch.Generator().manual_seed(key)
    observations = torch.randint(0, 256, (2, frames, 64, 64, 3), generator=generator, dtype=torch.uint8)
    actions = torch.randn(2, frames, 3, generator=generator)
    rewards, dones = torch.randn(2, frames, generator=generator), torch.rand(2, frames, generator=generator) < 0.2
    batch = Batch(observations, actions, rewards, dones, dones)
    outputs = world(batch.frames(), actions, world.draws(key, 2, frames))
    parameters = [p for p in world.parameters() if p.requires_grad]
    losses = aggregator.compute_losses(outputs, beta=0.3, batch=batch)[1]
    return [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]


@pytest.mark.parametrize("prior", ["dpgmm", "gaussian"])
@pytest.mark.parametrize("frames", [1, 5])
def test_steps_reach_what_the_trial_pass_showed(frames, prior):
    """Windows of one frame have no prediction, so they may reach less."""
    world, aggregator = opened(list(TASKS), prior=prior)
    reach, names = tasks_reaching(world, aggregator), [n for n, p in world.named_parameters() if p.requires_grad]
    for task, found in enumerate(gradients(world, aggregator, frames, key=7)):
        spared = aggregator.tasks[task].spares
        reached = {
            index
            for index, (name, gradient) in enumerate(zip(names, found, strict=True))
            if gradient is not None and name.split(".")[0] not in spared
        }
        shown = {index for index, tasks in enumerate(reach) if task in tasks}
        assert reached <= shown and (frames == 1 or reached == shown), TASKS


def test_the_trial_pass_changes_nothing():
    world, aggregator = opened(["elbo", "perceiver", "predictive"])
    before, generator = {n: t.clone() for n, t in world.state_dict().items()}, torch.get_rng_state()
    tasks_reaching(world, aggregator)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in world.state_dict().items())
    assert all(parameter.grad is None for parameter in world.parameters())


def test_parts_come_by_key_and_small_ones_together(monkeypatch):
    monkeypatch.setattr(reaches, "SMALLEST", 10)
    assert reaches.parts([6, 3, 6, 4, 12], ["a", "b", "a", "c", "d"]) == [[0, 2], [4], [1, 3]]
    assert reaches.parts([6, 6], ["a", "a"]) == [[0, 1]] and reaches.parts([], []) == []


def test_groups_are_divided_by_tasks_and_keep_their_options(monkeypatch):
    monkeypatch.setattr(reaches, "SMALLEST", 1)
    module = Toy()
    parameters = list(module.parameters())
    lr = torch.tensor(0.5)
    wide, rest = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": wide, "weight_decay": 0.1, "lr": lr}, {"params": rest, "weight_decay": 0.0, "lr": lr}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    reach = toy_reach(module)
    divide(optimizer, parameters, reach)
    tasks = {id(p): reaching for p, reaching in zip(parameters, reach, strict=True)}
    assert sorted(id(p) for group in optimizer.param_groups for p in group["params"]) == sorted(map(id, parameters))
    for group in optimizer.param_groups:
        assert len({tasks[id(p)] for p in group["params"]}) == 1 and group["lr"] is lr
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_a_gradient_that_would_be_lost_is_an_error_and_zeros_are_not():
    """A compiled region returns zeros for what a task does not reach; NaN in its inputs makes them NaN."""
    module = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)])
    parameters = list(module.parameters())
    partition = WholePartition(module, torch.optim.SGD(parameters))
    for value, lost in ((0.0, False), (float("nan"), False), (1e-30, True)):
        layout = FlatLayout(parameters, partition, reach=[frozenset({0}), frozenset({1})])
        found = [torch.ones(2, 3), torch.full((2, 2), value)]
        if lost:
            with pytest.raises(RuntimeError, match="task 0 reaches parameter 1"):
                layout.add(0, found, last=True)
        else:
            layout.add(0, found, last=True)
