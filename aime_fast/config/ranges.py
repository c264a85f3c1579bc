"""The values a configuration may take: bounds of single options, and options that must fit each other."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from aime_fast.config import TrainConfig
from aime_fast.errors import UserError

_INTEGERS_FROM_ZERO = {
    "seed",
    "threads",
    "model.action_dim",
    "loader.window_stride",
    "loader.windows_per_epoch",
    "objectives.beta_warmup_epochs",
    "balancing.alpha_steps",
    "optim.warmup_steps",
    "watching.figures_every",
}
_POSITIVE_NUMBERS = {"minutes", "model.concentration_shape", "model.concentration_rate", "optim.lr", "optim.clip"}
_FRACTIONS = {
    "model.imagination_dropout",
    "model.teacher_decay",
    "model.codebook_decay",
    "balancing.mu",
    "optim.beta1",
    "optim.beta2",
    "optim.final_lr_fraction",
}


def check_ranges(config: TrainConfig) -> None:
    """Raise `UserError` for the first option whose value cannot work, whatever the data and the machine.

    Integers are at least 1 unless 0 has a meaning of its own; numbers are finite and not negative; fractions lie
    in [0, 1]; a frame is a multiple of 16 pixels and of the grid, attention heads divide the perceiver's width,
    accumulation divides the batch.
    """
    for name, value in _numbers(config, ""):
        if isinstance(value, int):
            lowest = 0 if name in _INTEGERS_FROM_ZERO else 1
            if value < lowest:
                raise UserError(f"{name} must be at least {lowest}, not {value}")
        elif not math.isfinite(value) or value < 0 or (value == 0 and name in _POSITIVE_NUMBERS):
            raise UserError(f"{name} must be {'above' if name in _POSITIVE_NUMBERS else 'at least'} 0, not {value}")
        elif name in _FRACTIONS and value > 1:
            raise UserError(f"{name} must lie between 0 and 1, not {value}")
    for whole, part in (
        ("model.image_size", 16),
        ("model.image_size", "model.grid"),
        ("model.perceiver_dim", "model.perceiver_heads"),
        ("loader.batch_size", "optim.accumulation"),
    ):
        divisor = part if isinstance(part, int) else _value(config, part)
        if _value(config, whole) % divisor:
            by = divisor if isinstance(part, int) else f"{part} ({divisor})"
            raise UserError(f"{whole} must be a multiple of {by}, not {_value(config, whole)}")


def _numbers(config: Any, prefix: str) -> Iterator[tuple[str, int | float]]:
    """Every option that is a number, by dotted name; booleans and unset options are none."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _numbers(value, f"{prefix}{item.name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + item.name, value


def _value(config: TrainConfig, name: str) -> int:
    group, _, leaf = name.partition(".")
    return getattr(getattr(config, group), leaf)
