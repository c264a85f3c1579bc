"""Refuses a run whose step the machine's memory cannot hold, before any of it is taken."""

import os

import torch

from aime_fast.config import ModelConfig, TrainConfig
from aime_fast.data.backends.resident import free_bytes
from aime_fast.errors import UserError
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.planning.memory import peak_bytes
from aime_fast.training.engines.engine import trainable

GB = 1e9
PER_PIXEL = 6e3
"""More bytes than a step of `paper` takes for each pixel of a frame; about twice what is counted."""
PER_PARAMETER, AT_LEAST = 50, 16
"""Bytes of a trainable parameter: more than it takes with its gradients and moments, and no more than it takes: itself,
one gradient and two moments."""
SUSPECT = 0.5
"""Only where the generous estimate takes more than this part of the free memory is the step counted, which takes
seconds."""


def refuse_too_large(config: TrainConfig) -> None:
    """`UserError` if a step of all processes on this CPU needs more than the free memory.

    `config` has the sizes of the data. Allocates nothing of what it counts.
    """
    here, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    free, parameters = free_bytes(torch.device("cpu")), parameter_count(config)
    if here * generous_bytes(config, parameters, world) <= SUSPECT * free:
        return
    least = AT_LEAST * parameters * here / world  # ZeRO may share all of it among the processes
    if least > free:  # counting a step of such a model would take minutes
        raise UserError(
            f"a model of {parameters / 1e9:.1f} G parameters needs at least {least / GB:.0f} GB for them, their "
            f"gradients and moments, and {free / GB:.1f} GB are free; lower the sizes of --model, or take a smaller "
            "--preset"
        )
    needed = here * peak_bytes(config, world, "cpu")
    if needed > free:
        loader = config.loader
        raise UserError(
            f"a step of {loader.batch_size} windows of {loader.sequence_length} frames needs {needed / GB:.1f} GB, and "
            f"{free / GB:.1f} GB are free; lower --loader.batch-size, raise --optim.accumulation, or take a smaller "
            "--preset"
        )


def parameter_count(config: TrainConfig) -> int:
    """Trainable numbers of the model, without the heads of tasks."""
    with torch.device("meta"):
        model = DPGMMVariationalRecurrentAutoencoder.from_config(config.model)
    return sum(parameter.numel() for parameter in trainable(model))


def generous_bytes(config: TrainConfig, parameters: int, world_size: int) -> float:
    """More bytes than a step of one process takes, from sizes and the number of trainable parameters alone."""
    model, published = config.model, ModelConfig()
    widths = ("tokenizer_width", "encoder_width", "decoder_width", "num_mixtures")
    width = max(getattr(model, name) / getattr(published, name) for name in widths)
    windows = config.loader.batch_size / config.optim.accumulation / world_size
    pixels = windows * config.loader.sequence_length * model.image_size**2
    return PER_PARAMETER * parameters + PER_PIXEL * width * pixels
