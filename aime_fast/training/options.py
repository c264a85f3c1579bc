"""From what a caller gave to the configuration a run has."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from aime_fast.config import PRESETS, TrainConfig, preset_config
from aime_fast.config.ranges import check_ranges
from aime_fast.errors import UserError

DEFAULT_EPOCHS = 100
"""Where neither epochs nor steps nor minutes are given."""


def configured(config: TrainConfig | None, options: dict[str, Any]) -> TrainConfig:
    """`config`, or the preset that `options` name, with the other options in it; checked for values that cannot work.

    A group of options takes a dict of its own fields. `UserError` for an unknown name.
    """
    if config is None:
        preset = options.get("preset", TrainConfig.preset)
        if preset not in PRESETS:
            raise UserError(f"there is no preset {preset!r}; the presets are {', '.join(PRESETS)}")
        config = preset_config(preset)
    config = _with(config, options, "")
    if config.epochs is None and config.steps is None and config.minutes is None:
        config = replace(config, epochs=DEFAULT_EPOCHS)
    check_ranges(config)
    return config


def with_action_dim(config: TrainConfig, action_dim: int, data: str) -> TrainConfig:
    """The configuration with the actions' size filled in from the data; `UserError` where it says another."""
    if config.model.action_dim not in (0, action_dim):
        raise UserError(
            f"model.action_dim is {config.model.action_dim}, but the actions in {data} have {action_dim} numbers; "
            f"leave model.action_dim out or set it to {action_dim}"
        )
    return replace(config, model=replace(config.model, action_dim=action_dim))


def _with(group: Any, options: dict[str, Any], prefix: str) -> Any:
    known = {item.name for item in fields(group)}
    if unknown := sorted(set(options) - known):
        raise UserError(f"there is no option {prefix}{unknown[0]}; there are {', '.join(sorted(known))}")
    nested = {
        name: _with(getattr(group, name), value, f"{name}.")
        for name, value in options.items()
        if isinstance(value, dict) and is_dataclass(getattr(group, name))
    }
    return replace(group, **{**options, **nested})
