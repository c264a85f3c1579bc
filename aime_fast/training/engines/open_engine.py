"""Which engine a run uses."""

import os
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from aime_fast.balancing.layouts.reach import Reach
from aime_fast.config import TrainConfig
from aime_fast.errors import UserError
from aime_fast.training.engines.deepspeed_engine import DeepSpeedEngine
from aime_fast.training.engines.engine import Engine, PlainEngine

M = TypeVar("M", bound=nn.Module)


def open_engine(model: M, config: TrainConfig, reach: Callable[[], Reach] | None = None) -> Engine[M]:
    """The engine for `config.ds_config`: DeepSpeed's, or the plain one for None.

    model: the module with its initial weights; moved to this process's device. reach: finds the tasks that can reach
    each trainable parameter; called with the model on its device, where there are several processes. Without it every
    task is reduced for all parameters. Raises UserError for a configuration that does not fit.
    """
    if config.ds_config is None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1:
            raise UserError(f"{processes} processes without --ds_config would train apart; add --ds_config zero2")
        return PlainEngine(model, config)
    return DeepSpeedEngine(model, config, reach)
