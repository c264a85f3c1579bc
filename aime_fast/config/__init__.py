"""Typed configuration of a run, and where its values come from."""

from aime_fast.config.schema import (
    PRESETS,
    BalancingConfig,
    LoaderConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
    WatchingConfig,
    preset_config,
    to_dict,
)

__all__ = [
    "PRESETS",
    "BalancingConfig",
    "LoaderConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "TrainConfig",
    "WatchingConfig",
    "preset_config",
    "to_dict",
]
