"""The real model at its `debug` sizes on random frames, as an engine test's module."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from aime_fast.config import preset_config
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.aggregator import LossAggregator

WINDOWS, FRAMES, ACTIONS = 4, 3, 6


class World(nn.Module):
    """The world model with its losses at beta 0.5."""

    def __init__(self, seed: int = 0, windows: int = WINDOWS) -> None:
        super().__init__()
        self.windows = windows
        torch.manual_seed(seed)
        config = replace(preset_config("debug").model, action_dim=ACTIONS)
        self.model = DPGMMVariationalRecurrentAutoencoder.from_config(config)
        self.spares = [frozenset(f"model.{name}" for name in task.spares) for task in LossAggregator().tasks]

    def forward(self, observations: Tensor, actions: Tensor, noise: object = None, *_: object) -> object:
        return self.model(observations, actions, draws=noise)

    def losses(self, outputs: object) -> list[Tensor]:
        return LossAggregator().compute_losses(outputs, beta=0.5)[1]

    def inputs(self, step: int) -> tuple[Tensor, Tensor, object]:
        """The global batch of one step and its draws, the same on every rank."""
        generator = torch.Generator().manual_seed(step)
        frames = torch.randint(0, 256, (self.windows, FRAMES, 3, 64, 64), generator=generator) / 127.5 - 1
        actions = torch.randn(self.windows, FRAMES, ACTIONS, generator=generator)
        return frames, actions, self.model.draws(step, self.windows, FRAMES)
