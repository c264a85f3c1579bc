"""aime-fast: train AIME, the Adaptive Infinite Mixture Engine, from video and actions."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "DMCVBDataset": "aime_fast.data.dataset",
    "DMCVBTrainer": "aime_fast.training.trainer",
    "DPGMMVariationalRecurrentAutoencoder": "aime_fast.model.world_model",
    "LossAggregator": "aime_fast.tasks.aggregator",
    "RGB": "aime_fast.balancing.rgb",
}
__all__ = ["RGB", "DMCVBDataset", "DMCVBTrainer", "DPGMMVariationalRecurrentAutoencoder", "LossAggregator"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `aime-fast --help` does not wait for torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'aime_fast' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
