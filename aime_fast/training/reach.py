"""Which tasks reach which parameters, found by a trial pass before the engine lays the parameters out."""

import torch

from aime_fast.balancing.layouts.reach import Reach
from aime_fast.data.batch import Batch
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.tasks.task import belongs

_FRAMES = 2
"""The first frame has no prediction; a second one has whatever later ones have."""


def tasks_reaching(model: WorldModel, aggregator: LossAggregator) -> Reach:
    """For each trainable parameter, in definition order, the tasks whose loss depends on it.

    One window of black frames goes through the model as written, forwards and, for each task, backwards. Where autograd
    returns no gradient depends on the code, not on values: the answer is the same on all ranks, and a compiled step
    reaches the same. Changes neither the model's state nor torch's generators. Collective where losses are.

    model: on its device, in training mode, of known action and image size.
    """
    config, device = model.config, next(model.parameters()).device
    frames = torch.zeros(1, _FRAMES, config.image_size, config.image_size, 3, dtype=torch.uint8, device=device)
    actions, rewards = (torch.zeros(1, _FRAMES, *size, device=device) for size in ((config.action_dim,), ()))
    batch = Batch(frames, actions, rewards, dones=rewards > 0, terminated=rewards > 0)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    names, parameters = [name for name, _ in named], [parameter for _, parameter in named]
    outputs = model(batch.frames(), batch.actions, model.draws(0, 1, _FRAMES))
    _, losses = aggregator.compute_losses(outputs, beta=1.0, batch=batch)
    found: list[set[int]] = [set() for _ in parameters]
    for task, loss in enumerate(losses):
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            for tasks, name, gradient in zip(found, names, gradients, strict=True):
                if gradient is not None and not belongs(name, aggregator.tasks[task].spares):
                    tasks.add(task)
    return [frozenset(tasks) for tasks in found]
