"""Typed configuration of a run: defaults < preset < yaml file < flags."""

from aime_fast.config.options import preset_config
from aime_fast.config.schema import (
    PRESETS,
    BalancingConfig,
    LoaderConfig,
    LoggingConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    to_dict,
)

__all__ = [
    "PRESETS",
    "BalancingConfig",
    "LoaderConfig",
    "LoggingConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "preset_config",
    "to_dict",
]
