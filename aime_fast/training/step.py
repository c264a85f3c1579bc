"""The way of one batch, top to bottom: sampler, uint8, frames, model, losses, backwards, balance, step."""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import Tensor
from torch.profiler import record_function

from aime_fast.config import TrainConfig
from aime_fast.data.batch import Batch
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.training.meters import average
from aime_fast.training.prefetcher import on_device
from aime_kernels import normalise_frames

TASK_NAMES = ("elbo", "perceiver", "predictive")


@dataclass(frozen=True)
class Inputs:
    """This rank's rows of one step."""

    batch: Batch
    """B/W windows on the device, frames uint8."""
    noise: Any
    """The step's draws for these windows."""


@dataclass(frozen=True)
class StepResult:
    """What one step leaves behind, all on the device."""

    values: dict[str, Tensor]
    """0-d tensors by name: loss terms, gradient norms, angles and cosines of the tasks."""
    finite: Tensor
    """0-d bool: false where a gradient was not finite on some rank and all ranks skipped the step."""


class TrainingStep:
    """One optimiser step. Nothing in `fetch` or `__call__` waits for the device."""

    def __init__(self, engine: Any, rgb: Any, aggregator: LossAggregator, backend: Any, config: TrainConfig) -> None:
        self.engine, self.rgb, self.aggregator, self.backend = engine, rgb, aggregator, backend
        self.seed, self.loader = config.seed, config.loader

    def fetch(self, step: int) -> Inputs:
        """Rows [r*B/W, (r+1)*B/W) of the global batch of `step`, and of its draws: both keyed by (seed, step) alone."""
        engine = self.engine
        with record_function("data"):
            batch = on_device(self.backend.batch(step, engine.rank, engine.world_size), engine.device)
            noise = engine.module.draws(noise_key(self.seed, step), self.loader.batch_size, self.loader.sequence_length)
            first = engine.rank * len(batch)
            return Inputs(batch, noise.rows(first, first + len(batch)).to(engine.device))

    def __call__(self, inputs: Inputs, beta: float | Tensor) -> StepResult:
        """Train on `inputs` with KL weight `beta`."""
        engine = self.engine
        rows = len(inputs.batch) // engine.accumulation
        outputs_of, losses_of = [], []
        for start in range(0, rows * engine.accumulation, rows):
            micro = inputs.batch.rows(start, start + rows)
            with record_function("forward"):
                frames = normalise_frames(micro.observations)
                outputs = engine(frames, micro.actions, inputs.noise.rows(start, start + rows))
                losses, tasks = self.aggregator.compute_losses(outputs, beta=beta)
            with record_function("backward"):
                engine.backward(tasks, TASK_NAMES)
            outputs_of.append(outputs)
            losses_of.append({name: loss.detach() for name, loss in losses.items()})
        with record_function("balance/step"):
            report = engine.balance_and_step(self.rgb)
            engine.module.after_step(outputs_of, report.finite, engine.stored)
        return StepResult(average(losses_of) | balance_values(report), report.finite)


def noise_key(seed: int, step: int) -> int:
    """One key for every (seed, step) with step below 2^32 and seed below 2^31."""
    return (seed << 32) + step


def balance_values(report: Any) -> dict[str, Tensor]:
    """What the engine's report says of the gradients, one 0-d tensor a name."""
    balance = report.balance
    values = {"grad_norm": report.grad_norm, "rgb_cancelled": balance.cancelled}
    for i, task in enumerate(TASK_NAMES):
        values |= {
            f"grad_norm_{task}": balance.norms[i],
            f"rgb_angle_{task}": balance.angles[i],
            f"rgb_projection_{task}": balance.projections[i],
        }
    for i, j in combinations(range(len(TASK_NAMES)), 2):
        values[f"rgb_cosine_{TASK_NAMES[i]}_{TASK_NAMES[j]}"] = balance.cosines[i, j]
    return values
