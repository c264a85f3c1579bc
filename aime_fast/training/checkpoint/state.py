"""The one list of all that must survive for a resumed run to be the same run."""

import platform
import random
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aime_fast.config import TrainConfig, to_dict
from aime_fast.training.checkpoint.portable_state import StoredState, named_state


@dataclass
class Progress:
    """How far the run is; equal on all ranks."""

    step: int = 0
    """Optimiser steps done; with the seed, it is also the sampler's and the noise's whole state."""
    seconds: float = 0.0
    """Seconds spent training, over all resumptions."""
    best_psnr: float | None = None
    """Best validation PSNR so far, in dB."""
    best_step: int = 0
    """The step it was reached at."""
    skipped: int = 0
    """Steps skipped for a non-finite gradient."""
    skipped_in_a_row: int = 0
    """How many of them are the most recent steps."""


class RunState:
    """What a checkpoint holds. State that is added anywhere in training belongs here, or a resumed run differs.

    Of the schedules and the data order nothing is stored: both are functions of the step.
    """

    def __init__(self, config: TrainConfig, engine: Any, rgb: Any, progress: Progress) -> None:
        self.config, self.engine, self.rgb, self.progress = config, engine, rgb, progress

    def shared(self) -> dict[str, Any]:
        """What is equal on all ranks, as plain JSON values: progress, configuration, versions."""
        return {"progress": asdict(self.progress), "config": to_dict(self.config), "versions": versions()}

    def weights(self) -> dict[str, Tensor]:
        """The model's parameters and buffers, EMA teacher and codebook averages included; collective."""
        return self.engine.weights()

    def named(self) -> dict[str, Tensor]:
        """This rank's share of the optimiser's state and of RGB's d, by parameter name."""
        return named_state(self.engine, self.rgb.state_dict().get("direction"))

    def own(self) -> dict[str, Any]:
        """What only this rank needs: generators, RGB's angles and counters. Loadable with `weights_only=True`."""
        balance = {k: v for k, v in self.rgb.state_dict().items() if k != "direction"}
        return {"rgb": balance, "generators": generators()}

    def restore(
        self, weights: dict[str, Tensor], shared: dict[str, Any], stored: StoredState, own: dict[str, Any]
    ) -> None:
        """Take over a checkpoint of the same model."""
        self.engine.load_weights(weights)
        balance, direction = own["rgb"], stored.restore(self.engine)
        if balance and "direction" not in balance:
            balance = balance | {"direction": direction}
        self.rgb.load_state_dict(balance)
        set_generators(own["generators"])
        for item in fields(self.progress):
            setattr(self.progress, item.name, shared["progress"][item.name])


def generators() -> dict[str, Any]:
    """States of the process's random generators (python, numpy, torch, CUDA) as plain values and tensors."""
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generators(states: dict[str, Any]) -> None:
    """Undo `generators`."""
    kind, words, gauss = states["python"]
    random.setstate((kind, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def seed_everything(seed: int) -> None:
    """Start every generator of the process from `seed`: it decides the initial weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    found = {"python": platform.python_version()}
    for package in ("aime-fast", "torch", "deepspeed", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
