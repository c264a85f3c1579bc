"""What changes with the step: the weight of the KL terms and the learning rate."""

import math

from aime_fast.config import TrainConfig


class Schedules:
    """Beta and learning rate as pure functions of the step, and of the time in a run that only time limits."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.optim = config.optim
        self.beta_warmup_steps = config.losses.beta_warmup_steps
        limits = [config.steps, config.epochs and config.epochs * steps_per_epoch]
        self.total_steps: int | None = min((limit for limit in limits if limit is not None), default=None)
        """Steps of the whole run, by the smaller of `steps` and `epochs`; None if `config` gives neither."""

    def beta(self, step: int) -> float:
        """Weight of the KL terms in [0, 1] at `step` (from 0): linear, then 1."""
        return min(1.0, step / self.beta_warmup_steps) if self.beta_warmup_steps > 0 else 1.0

    def lr(self, step: int, time_fraction: float = 0.0) -> float:
        """Learning rate at `step` (from 0): linear warm-up times half a cosine.

        The cosine follows `step / total_steps`, or `time_fraction` in [0, 1] if the run has no number of steps.
        """
        optim = self.optim
        done = step / self.total_steps if self.total_steps else time_fraction
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
        ramp = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps > 0 else 1.0
        return optim.lr * ramp * (optim.final_lr_fraction + (1.0 - optim.final_lr_fraction) * cosine)
