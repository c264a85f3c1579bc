"""A small module with three tasks, and the batch they are tested on."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from aime_fast.balancing.balancer import Balancer
from aime_fast.config import BalancingConfig, TrainConfig, preset_config


class Toy(nn.Module):
    """Three losses over a shared trunk: task 2 never reaches `head`, only task 1 reaches `side`, none `idle`."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.trunk = nn.Linear(7, 11)
        self.head = nn.Linear(11, 5)
        self.side = nn.Linear(11, 3, bias=False)
        self.idle = nn.Parameter(torch.ones(13, 2))
        self.scale = nn.Parameter(torch.tensor([1.5]))
        for parameter in (*self.trunk.parameters(), *self.head.parameters(), *self.side.parameters()):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def forward(
        self, observations: Tensor, actions: Tensor, noise: Tensor | None = None, *_: object
    ) -> dict[str, Tensor]:
        hidden = torch.tanh(self.trunk(observations.to(self.trunk.weight.dtype)).float())
        head, side = self.head(hidden).float(), self.side(hidden).float()
        return {"head": head, "side": side, "hidden": hidden, "actions": actions}

    def inputs(self, step: int) -> tuple[Tensor, Tensor, Any]:
        """The global batch of one step and its draws."""
        return *batch(step), NoDraws()

    def losses(self, outputs: dict[str, Tensor]) -> list[Tensor]:
        """Means over the batch, so the mean over equal slices is the whole batch's loss."""
        return [
            (outputs["head"] - outputs["actions"]).square().mean() * self.scale[0],
            100 * (outputs["side"].square() - 0.3).square().mean() + outputs["head"].cos().mean(),
            -0.01 * (outputs["hidden"] * self.scale).sin().mean(),
        ]


def toy_reach(module: Toy) -> list[frozenset[int]]:
    """The tasks that reach each parameter, written down by hand."""
    by_child = {"idle": (), "scale": (0, 2), "trunk": (0, 1, 2), "head": (0, 1), "side": (1,)}
    return [frozenset(by_child[name.partition(".")[0]]) for name, _ in module.named_parameters()]


class NoDraws:
    """The toy needs no randomness."""

    def rows(self, start: int, stop: int) -> None:
        """Nothing, for any rows."""


def batch(step: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """Observations [size, 7] and targets [size, 5] of one step, the same on every rank."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(size, 7, generator=generator), torch.randn(size, 5, generator=generator)


def toy_config(**optim: Any) -> TrainConfig:
    """The debug preset with a batch of 12 and the given optimiser settings."""
    config = preset_config("debug")
    return replace(config, loader=replace(config.loader, batch_size=12), optim=replace(config.optim, **optim))


def balancer_of(engine: Any, solver: str = "rotation", groups: str = "all", tasks: int = 3) -> Balancer:
    """A balancer of the engine's task gradients."""
    config = BalancingConfig(solver=solver, groups=groups)
    return Balancer(config, engine.layout, engine.parameter_names, [f"task {number}" for number in range(tasks)])


def run_step(engine: Any, balancer: Any, step: int) -> Any:
    """One optimiser step of this rank's slice of the global batch, split into micro-batches; the step's report."""
    module, size = engine.module, engine.micro_batch
    observations, actions, noise = module.inputs(step)
    first = engine.rank * engine.accumulation * size
    for start in range(first, first + engine.accumulation * size, size):
        rows = slice(start, start + size)
        losses = module.losses(engine(observations[rows], actions[rows], noise.rows(start, start + size)))
        engine.backward(losses, spares=getattr(module, "spares", None))
    return engine.balance_and_step(balancer)
