"""The complete list of what a checkpoint must hold, so that a resumed run is the same run."""

import platform
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor, nn

from aime_fast import __version__
from aime_fast.balancing.balancer import Balancer
from aime_fast.config import TrainConfig, to_dict
from aime_fast.data.identity import DataIdentity
from aime_fast.model.latent_memory import LatentMemory
from aime_fast.training.checkpoint.portable_state import StoredState, portable_state
from aime_fast.training.engines.engine import Engine

Shared = dict[str, dict[str, object]]
"""What is equal on all ranks, as JSON values: `progress`, `config`, `data` and `versions`."""
BALANCER, GENERATOR, MEMORY = "balancer/", "generator/", "memory/"


@dataclass
class Progress:
    """How far the run is; equal on all ranks."""

    step: int = 0
    """Optimiser steps done. Data order and random draws depend on the seed and this number only."""
    seconds: float = 0.0
    """Seconds spent training, over all resumptions."""
    best_psnr: float | None = None
    """Best validation PSNR so far, in dB."""
    best_step: int = 0
    """The step that reached it."""
    skipped: int = 0
    """Steps skipped because of a non-finite gradient."""
    skipped_in_a_row: int = 0
    """How many of the most recent steps were skipped."""


class RunState:
    """The state of a run. Any state that is added to training belongs here, or a resumed run differs.

    Schedules and data order are functions of the step and need no state. Training does not use the generators of
    Python's `random` or of numpy.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: DataIdentity,
        engine: Engine[nn.Module],
        balancer: Balancer,
        progress: Progress,
        memory: LatentMemory | None = None,
    ) -> None:
        self.config, self.data, self.memory = config, data, memory
        self.engine, self.balancer, self.progress = engine, balancer, progress

    def shared(self) -> Shared:
        """Progress, configuration, data and versions."""
        facts = {"config": to_dict(self.config), "data": asdict(self.data)}
        return {"progress": asdict(self.progress), **facts, "versions": versions()}

    def weights(self) -> dict[str, Tensor]:
        """The model's parameters and buffers, with EMA teacher and codebook averages; collective."""
        return self.engine.weights()

    def of_rank(self) -> dict[str, Tensor]:
        """This rank's part of optimiser and consensus direction, its generators, small state and remembered latents."""
        state = self.balancer.state_dict().items()
        small = {BALANCER + name: value for name, value in state if isinstance(value, Tensor)}
        generators = {GENERATOR + device: value for device, value in generator_states().items()}
        kept = {MEMORY + name: value for name, value in (self.memory.state_dict() if self.memory else {}).items()}
        return portable_state(self.engine, self.balancer.layout.direction) | small | generators | kept

    def restore(self, weights: dict[str, Tensor], shared: Shared, stored: StoredState, rank_file: int) -> None:
        """Restore all of it from a checkpoint of the same model; `rank_file` is the index of this rank's own file."""
        self.engine.load_weights(weights)
        direction, small = stored.restore(self.engine), stored.own(rank_file, BALANCER)
        solver = self.config.balancing.solver
        self.balancer.load_state_dict({**small, "solver": solver, "direction": direction} if small else {})
        set_generator_states(stored.own(rank_file, GENERATOR))
        if self.memory:
            self.memory.load_state_dict(stored.own(rank_file, MEMORY))
        for item in fields(self.progress):
            setattr(self.progress, item.name, shared["progress"][item.name])


def generator_states() -> dict[str, Tensor]:
    """States of torch's random generators, by device."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state()} | {f"cuda:{index}": state for index, state in enumerate(on_gpus)}


def set_generator_states(states: dict[str, Tensor]) -> None:
    """Restore what `generator_states` returned, on the devices that exist here."""
    torch.set_rng_state(states["cpu"])
    for index in range(torch.cuda.device_count()):
        if (state := states.get(f"cuda:{index}")) is not None:
            torch.cuda.set_rng_state(state, index)


def versions() -> dict[str, object]:
    """Versions that results depend on."""
    installed = {"torch": torch.__version__, "numpy": np.__version__, "deepspeed": _deepspeed()}
    return {"aime-fast": __version__, "python": platform.python_version(), **installed}


def _deepspeed() -> str | None:
    """None where it is missing: a run on one process does without it."""
    try:
        return version("deepspeed")
    except PackageNotFoundError:
        return None
