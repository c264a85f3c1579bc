"""What changes with the step: the weight of the KL terms and the learning rate."""

import math
from dataclasses import dataclass

from aime_fast.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """Beta and learning rate as pure functions of the step, and of the time in a run that only time limits."""

    peak_lr: float
    """Learning rate at the end of the warm-up, before the cosine lowers it."""
    final_lr_fraction: float
    """Final learning rate as a fraction of the peak."""
    warmup_steps: int
    """Steps of linear learning-rate warm-up."""
    beta_warmup_steps: int
    """Steps over which beta goes from 0 to 1."""
    total_steps: int | None
    """Steps of the whole run; None if only time ends it."""

    @classmethod
    def from_config(cls, config: TrainConfig, steps_per_epoch: int) -> "Schedules":
        """The schedules of `config`, with epochs converted to steps; the smaller of `steps` and `epochs` ends the run.

        `total_steps` is None if `config` gives neither.
        """
        limits = [config.steps, config.epochs and config.epochs * steps_per_epoch]
        return cls(
            peak_lr=config.optim.lr,
            final_lr_fraction=config.optim.final_lr_fraction,
            warmup_steps=config.optim.warmup_steps,
            beta_warmup_steps=config.objectives.beta_warmup_epochs * steps_per_epoch,
            total_steps=min((limit for limit in limits if limit is not None), default=None),
        )

    def beta(self, step: int) -> float:
        """Weight of the KL terms in [0, 1] at `step` (from 0): linear, then 1."""
        return min(1.0, step / self.beta_warmup_steps) if self.beta_warmup_steps > 0 else 1.0

    def lr(self, step: int, time_fraction: float = 0.0) -> float:
        """Learning rate at `step` (from 0): linear warm-up times half a cosine.

        The cosine follows `step / total_steps`, or `time_fraction` in [0, 1] if the run has no number of steps.
        """
        done = step / self.total_steps if self.total_steps else time_fraction
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
        ramp = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps > 0 else 1.0
        return self.peak_lr * ramp * (self.final_lr_fraction + (1.0 - self.final_lr_fraction) * cosine)
