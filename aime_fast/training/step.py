"""One training step, top to bottom: batch, forward pass, losses, one backward pass per task, balance, update."""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from aime_fast.balancing.balancer import Balancer
from aime_fast.config import TrainConfig
from aime_fast.data.backends import Backend
from aime_fast.data.batch import Batch
from aime_fast.model.draws import Draw, Draws, make_draws
from aime_fast.model.frame_memory import FrameMemory, single_frames
from aime_fast.model.latent_memory import LatentMemory
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.profiling.phases import phase
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.training.engines.engine import Engine, StepReport
from aime_fast.training.meters import average
from aime_fast.training.prefetcher import CopyStream, on_device

_GOLDEN = 2654435761
"""2^32 over the golden ratio: its multiples lie evenly on the circle of 2^32."""


@dataclass(frozen=True)
class Inputs:
    """One rank's share of a step's global batch."""

    batch: Batch
    """B/W windows on the device, frames uint8."""
    draws: Draws
    """The step's random draws for these windows."""


@dataclass(frozen=True)
class StepResult:
    """Results of one step, on the device."""

    values: dict[str, Tensor]
    """0-d tensors by name: loss terms, and norms, angles and cosines of the task gradients."""
    finite: Tensor
    """0-d bool: False if a gradient was not finite on any rank; all ranks then skip the step."""


@dataclass(frozen=True)
class Computed:
    """What `TrainingStep.compute` leaves for the rest of the step."""

    report: StepReport
    ids: Tensor
    """int64 [b, T, P]: codes of all this rank's windows."""
    encodings: Tensor
    """[b, T, P, d]: the vectors that were quantised."""
    latents: Tensor | None
    """[b, T, 2D]: posterior means and deviations of z, for the memory; None without one."""
    result: StepResult


class TrainingStep:
    """One optimiser step. Nothing in it waits for the device."""

    def __init__(
        self,
        engine: Engine[WorldModel],
        balancer: Balancer,
        aggregator: LossAggregator,
        backend: Backend,
        config: TrainConfig,
    ) -> None:
        self.engine, self.balancer, self.aggregator, self.backend = engine, balancer, aggregator, backend
        self.names = [task.name for task in aggregator.tasks]
        self.spares = [task.spares for task in aggregator.tasks]
        self.seed, self.loader = config.seed, config.loader
        self.frames = FrameMemory(config, engine.device, engine.world_size) if single_frames(config) else None
        self.memory = LatentMemory(config, engine.module.prior, engine.device) if config.losses.recalled else None
        self._on_copy_stream = CopyStream(engine.device)

    @property
    def draws(self) -> list[Draw]:
        """All that a step draws: the model's numbers, then the memories'."""
        of_latents = self.memory.draws if self.memory else ()
        return [*self.engine.module.declared_draws, *of_latents, *(self.frames.draws if self.frames else ())]

    def fetch(self, step: int) -> Inputs:
        """Load this rank's rows [r*B/W, (r+1)*B/W) of the global batch and its draws; both depend on (seed, step)."""
        with phase("data"):
            return self._on_copy_stream(lambda: self._load(step))

    def _load(self, step: int) -> Inputs:
        engine, loader = self.engine, self.loader
        batch = on_device(self.backend.batch(step, engine.rank, engine.world_size), engine.device)
        generator = torch.Generator().manual_seed(draw_key(self.seed, step))
        draws = make_draws(self.draws, loader.batch_size, loader.sequence_length, generator)
        first = engine.rank * len(batch)
        return Inputs(batch, draws.rows(first, first + len(batch)).to(engine.device))

    def refill(self, step: int) -> None:
        """Remember the frames of the steps before `step`, as a run does that was not interrupted."""
        if self.frames:
            self.frames.refill(step, lambda number: self._load(number).batch.observations)

    def __call__(self, inputs: Inputs, beta: float | Tensor) -> StepResult:
        """Train on `inputs` with KL weight `beta`."""
        computed = self.compute(inputs, beta)
        self.update(computed)
        self.follow(inputs, computed)
        return computed.result

    @torch.enable_grad()  # within a caller's no_grad it would train nothing, and not say so
    def compute(self, inputs: Inputs, beta: float | Tensor) -> Computed:
        """Forward and backward passes, reductions and balancing; changes no parameter."""
        rows = len(inputs.batch) // self.engine.accumulation
        if self.frames:
            self.frames.keep(inputs.batch.observations)
        parts = [
            self._micro_batch(inputs.batch.rows(row, row + rows), inputs.draws.rows(row, row + rows), row, beta)
            for row in range(0, rows * self.engine.accumulation, rows)
        ]
        losses, ids, encodings, latents = zip(*parts, strict=True)
        report = self.engine.balance(self.balancer)
        groups = self.balancer.config.groups
        result = StepResult(average(losses) | balance_values(self.names, report, groups), report.finite)
        kept = torch.cat([each for each in latents if each is not None]) if self.memory else None
        return Computed(report, torch.cat(ids), torch.cat(encodings), kept, result)

    def update(self, computed: Computed) -> None:
        """Step the optimiser."""
        self.engine.step(computed.report)

    def follow(self, inputs: Inputs, computed: Computed) -> None:
        """Move the averages, codebook and teacher, after the parameters, and keep the latents."""
        engine, finite = self.engine, computed.report.finite
        with phase("averages"):
            engine.module.after_step(computed.ids, computed.encodings, inputs.draws, finite, engine.stored)
            if self.memory and computed.latents is not None:
                self.memory.keep(torch.cat([computed.latents, inputs.batch.actions], -1), finite)

    def _micro_batch(
        self, batch: Batch, draws: Draws, first: int, beta: float | Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor | None]:
        """Forward and backward passes of some windows, from row `first` on.

        Their losses, codes, encodings and latents outlive them.
        """
        with phase("forward"):
            recalled = self.memory.take(draws) if self.memory else None
            singles = self.frames.take(draws, first) if self.frames else None
            outputs = self.engine(batch.frames(), batch.actions, draws, recalled, singles)
            losses, totals = self.aggregator.compute_losses(outputs, beta=beta, batch=batch)
        with phase("backward"):
            self.engine.backward(totals, self.names, self.spares)
        tokens, latents = outputs.token_info, posteriors(outputs) if self.memory else None
        return {name: loss.detach() for name, loss in losses.items()}, tokens.ids, tokens.encodings, latents


@torch.no_grad()
def posteriors(outputs: SequenceOutputs) -> Tensor:
    """Means and deviations of the posterior of z, [b, T, 2D]."""
    return torch.cat([outputs.posterior_mean, (0.5 * outputs.posterior_log_var).exp()], -1)


def draw_key(seed: int, step: int) -> int:
    """A key below 2^32, because torch's generator of a CPU reads no more; `step` below 2^32, and its key for seed 0.

    Keys of one seed differ. Two seeds are far apart: a run of a billion steps meets no key of another small seed.
    """
    return (step + seed * _GOLDEN) % 2**32


def balance_values(names: list[str], report: StepReport, groups: str) -> dict[str, Tensor]:
    """Metrics of the task gradients, 0-d by name; of their shared parts too where `groups` is `shared`."""
    balance = report.balance
    values = {"grad_norm": report.grad_norm, "rgb_cancelled": balance.cancelled}
    for i, task in enumerate(names):
        values[f"grad_norm_{task}"] = balance.norms[i]
        if groups == "shared":
            values[f"grad_norm_shared_{task}"] = balance.group_norms[0, i]
        if balance.successive is not None:
            values[f"successive_cosine_{task}"] = balance.successive[i]
        values[f"rgb_angle_{task}"] = balance.angles[i]
        values[f"rgb_projection_{task}"] = balance.projections[i]
    for (i, one), (j, other) in combinations(enumerate(names), 2):
        values[f"rgb_cosine_{one}_{other}"] = balance.cosines[i, j]
    return values
