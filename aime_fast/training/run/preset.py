"""The preset of a run that names none: sizes that suit the machine."""

import torch
from tqdm import tqdm

from aime_fast.config import TrainConfig
from aime_fast.data.backends.backend import training_device

ON_CPU = "small"
"""The preset that learns something within hours on a few cores."""
FRAMES_PER_THREAD = 120.0
"""Frames of `small` that one core of a server CPU trains on in a second, two of them at work (docs/performance.md)."""


def suitable_preset() -> str:
    """The preset for this machine: the published sizes on a GPU, `small` without one."""
    return TrainConfig.preset if training_device().type == "cuda" else ON_CPU


def expectation(config: TrainConfig, total_steps: int | None) -> str:
    """The line that says which preset was taken for a CPU, and about how long the run takes there."""
    seconds = 60 * config.minutes if config.minutes else float("inf")
    threads = torch.get_num_threads()
    if total_steps is not None:
        frames = total_steps * config.loader.batch_size * config.loader.sequence_length
        seconds = min(seconds, frames / (FRAMES_PER_THREAD * threads))
    cores, time = "1 idle core" if threads == 1 else f"{threads} idle cores", tqdm.format_interval(round(seconds))
    earlier = "" if config.minutes else "--minutes 20 ends it earlier; "
    anew = ", and then minutes in which its dynamics learn anew" if config.refit_steps else ""
    return (
        f"no GPU and no --preset: taking {config.preset}. Expect about {time} on {cores} "
        f"({FRAMES_PER_THREAD:.0f} frames/s each){anew}. {earlier}--preset paper takes the published sizes"
    )
