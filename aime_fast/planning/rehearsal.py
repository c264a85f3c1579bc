"""One training step on fake tensors: its kernels, and the memory alive after every event. Computes nothing."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from aime_fast.balancing.balancer import Balancer
from aime_fast.balancing.layouts.flat import FlatLayout
from aime_fast.balancing.layouts.partitions import WholePartition
from aime_fast.balancing.layouts.rounded import CODE
from aime_fast.config import ModelConfig, TrainConfig
from aime_fast.config.options import with_data_sizes
from aime_fast.config.schema import DEFAULT_IMAGE_SIZE
from aime_fast.data.batch import Batch
from aime_fast.model.draws import make_draws
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.planning.counting import Counting, Kernel
from aime_fast.planning.recurrent import AsOneOperator
from aime_fast.profiling.launches import gpu_routes
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.tasks.registry import make_tasks
from aime_fast.training.engines.ds_config import engine_settings
from aime_fast.training.engines.engine import Engine, make_optimizer, trainable
from aime_fast.training.step import Inputs, TrainingStep
from aime_kernels.dpgmm.divergence import forget_constants

Kind = Literal["weights", "task_gradients", "optimiser", "activations", "workspace"]
KINDS: tuple[Kind, ...] = ("weights", "task_gradients", "optimiser", "activations", "workspace")
ACTION_DIM = 21
"""Numbers in an action where the configuration leaves them to the data: those of the largest published task."""


@dataclass(frozen=True)
class Rehearsal:
    """What one step of one process does."""

    kernels: tuple[Kernel, ...]
    live: Tensor
    """int64 [kinds, events]: bytes alive after each event, by `KINDS`."""
    before: int
    """Bytes alive when the step begins: states, and the inputs of this step and the next."""
    sizes: tuple[int, ...]
    """Entries of each trainable parameter."""
    reach: tuple[frozenset[int], ...]
    """The tasks with a gradient of each parameter."""
    tasks: int
    frozen: int
    """Entries of parameters without a gradient."""

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(self.sizes)

    @property
    def largest_gradient(self) -> int:
        """Bytes of the gradient of the task that reaches most."""
        reached = list(zip(self.sizes, self.reach, strict=True))
        return max(sum(4 * size for size, tasks in reached if task in tasks) for task in range(self.tasks))

    @property
    def peak(self) -> int:
        """Most bytes alive at once."""
        return int(self.live.sum(0).max())


def with_sizes(config: TrainConfig) -> TrainConfig:
    """The configuration with the sizes of the published data where it leaves them open."""
    model = config.model
    action_dim = ACTION_DIM if model.action_dim == ModelConfig.action_dim else model.action_dim
    return with_data_sizes(config, action_dim, model.image_size or DEFAULT_IMAGE_SIZE, "a plan")


def rehearse(config: TrainConfig, windows: int, device_type: str = "cpu") -> Rehearsal:
    """The second step of a run on `windows` windows a step in one process, by the routes of a CPU or of "cuda"."""
    precision = computing(config)
    config = with_sizes(replace(config, optim=replace(config.optim, precision=precision), ds_config=None))
    return _rehearsed(replace(config, loader=replace(config.loader, batch_size=windows)), device_type)


def computing(config: TrainConfig) -> Literal["fp32", "bf16"]:
    """The precision of products, which a DeepSpeed configuration may set."""
    bf16 = engine_settings(config, 1).bf16 if config.ds_config else config.optim.precision == "bf16"
    return "bf16" if bf16 else "fp32"


class Sending(NamedTuple):
    """Dtypes of what is sent, which a DeepSpeed configuration may set."""

    gradients: torch.dtype
    update: torch.dtype
    """Of ZeRO-0's; at other stages parameters are sent."""

    @classmethod
    def of(cls, config: TrainConfig) -> Sending:
        """Those of a run."""
        settings = engine_settings(config, 1) if config.ds_config else None
        gradients = torch.bfloat16 if settings and settings.bf16_reductions else torch.float32
        return cls(gradients, CODE if settings and settings.fp8_update else gradients)


@lru_cache(maxsize=64)
def _rehearsed(config: TrainConfig, device_type: str) -> Rehearsal:
    with _fakes():
        step = _step(config)
        counting = Counting()
        engine, gradients, persistent = step.engine, set[int](), dict[int, Kind]()

        def at_phase(name: str) -> None:
            if name == "balance":
                gradients.update(counting.number(t) for row in engine.layout.vectors() for t in row if t is not None)

        counting._on_phase = at_phase
        with _as_on(device_type, counting):
            beta = torch.tensor(0.5)
            step(_inputs(step, config), beta)  # makes the states that later steps find
            inputs, following = _inputs(step, config), _inputs(step, config)
            persistent |= _numbers(counting, engine, step)
            before = counting.forget_past()
            gradients.clear()
            step(inputs, beta)
            del inputs, following
    kinds = [persistent.get(n) or _kind(n, counting.born[n], gradients) for n in range(len(counting.born))]
    sizes = tuple(p.numel() for p in trainable(engine.module))
    reach = tuple(frozenset(tasks) for tasks in engine.layout.tasks_reaching)
    live = _curves(counting.events, kinds)
    frozen = sum(p.numel() for p in engine.module.parameters()) - sum(sizes)
    return Rehearsal(tuple(counting.kernels), live, before, sizes, reach, len(config.tasks), frozen)


def _step(config: TrainConfig) -> TrainingStep:
    device = torch.device("cpu")
    model = WorldModel.from_config(config.model)
    tasks = make_tasks(config.tasks)
    model.add_heads(tasks)
    optimizer = make_optimizer(model, config.optim, device)
    layout = FlatLayout(trainable(model), WholePartition(model, optimizer))
    engine = Engine(model, optimizer, layout, config, device, bf16=config.optim.precision == "bf16")
    balancer = Balancer(config.balancing, layout, engine.parameter_names, config.tasks)
    return TrainingStep(engine, balancer, LossAggregator(config.losses, tasks), None, config)  # type: ignore[arg-type]


def _inputs(step: TrainingStep, config: TrainConfig) -> Inputs:
    shape = (config.loader.batch_size, config.loader.sequence_length)
    size = config.model.image_size
    batch = Batch(
        torch.empty(*shape, size, size, 3, dtype=torch.uint8),
        torch.empty(*shape, config.model.action_dim),
        torch.empty(shape),
        torch.empty(shape, dtype=torch.bool),
        torch.empty(shape, dtype=torch.bool),
    )
    return Inputs(batch, make_draws(step.draws, *shape, None))


def _numbers(counting: Counting, engine: Engine[WorldModel], step: TrainingStep) -> dict[int, Kind]:
    """The kinds of what outlives a step, by number of the storage."""
    module, states, balancer = engine.module, engine.optimizer.state.values(), step.balancer
    known: dict[int, Kind] = {}
    for kind, tensors in (
        ("task_gradients", [t for t in engine.layout.direction or [] if t is not None]),
        ("task_gradients", [balancer.sample.samples] if balancer.sample else []),
        ("optimiser", [t for state in states for t in state.values() if isinstance(t, Tensor)]),
        ("weights", [*module.parameters(), *module.buffers()]),
        ("activations", [step.memory.rows] if step.memory else []),
        ("activations", [step.frames.kept] if step.frames else []),
    ):
        known |= dict.fromkeys((counting.number(t) for t in tensors), kind)  # type: ignore[arg-type]
    return known


def _kind(number: int, born: str, gradients: set[int]) -> Kind:
    if number in gradients:
        return "task_gradients"
    return "activations" if born in ("forward", "data", "elsewhere") else "workspace"


def _curves(events: list[tuple[int, int]], kinds: list[Kind]) -> Tensor:
    numbers = torch.tensor([number for number, _ in events])
    rows = torch.tensor([KINDS.index(kind) for kind in kinds])[numbers]
    changes = torch.zeros(len(KINDS), len(events), dtype=torch.int64)
    changes[rows, torch.arange(len(events))] = torch.tensor([size for _, size in events])
    return changes.cumsum(1)


@contextmanager
def _fakes() -> Iterator[None]:
    """Tensors without memory. No garbage is collected: two rehearsals then have the same events."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
            # The reference of `rgb_combine` compares addresses, which are all 0: nothing is copied, as it should be.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield
    finally:
        forget_constants()  # a run that follows in this process needs real ones
        if collecting:
            gc.enable()


@contextmanager
def _as_on(device_type: str, counting: Counting) -> Iterator[None]:
    with ExitStack() as stack:
        if device_type == "cuda":
            stack.enter_context(gpu_routes())
        stack.enter_context(counting)
        if device_type == "cuda":
            stack.enter_context(AsOneOperator(counting))
        yield
