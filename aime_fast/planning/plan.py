"""`plan`: memory, time, network, disk and cost of a run on cards that need not be there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aime_fast.config import TrainConfig
from aime_fast.planning.cards import Card

Bound = Literal["launches", "bytes", "products", "network"]
"""What a phase's time follows from: kernels too short to fill the card, memory traffic, products, or the links."""
Interconnect = Literal["auto", "nvlink", "pcie", "ethernet"]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the data is: windows that start at every `stride`-th frame of every episode."""

    episodes: int = 2000
    frames: int = 500
    stride: int = 16

    def windows(self, length: int) -> int:
        """Windows of `length` frames."""
        return self.episodes * max(0, (self.frames - length) // self.stride + 1)


PUBLISHED = Epoch()
"""The published DMC-VB subset: 2,000 episodes of 500 frames, stride 16."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the moment of a step that needs most."""

    weights: float
    """Parameters and buffers, the teacher's copy included."""
    task_gradients: float
    """One gradient a task, the consensus direction, and what a reduction holds beside them."""
    optimiser: float
    """AdamW's two moments."""
    activations: float
    """What the forward pass keeps for the backward passes, and the inputs."""
    workspace: float
    """Results that live only within a phase, workspaces of libraries, and what the allocator loses to rounding."""
    context: float
    """The CUDA context and loaded kernels; not torch's."""

    @property
    def allocated(self) -> float:
        """What torch's allocator holds in tensors: all but the context."""
        return self.total - self.context

    @property
    def total(self) -> float:
        """All of it."""
        return (
            self.weights + self.task_gradients + self.optimiser + self.activations + self.workspace + self.context
        )


@dataclass(frozen=True)
class Phase:
    """One part of a step on one GPU."""

    name: str
    seconds: float
    bound: Bound
    launches: int
    flops: float
    bytes: float
    """Read and written in the card's memory."""
    sent: float = 0.0
    """Bytes that this GPU sends."""


@dataclass(frozen=True)
class Plan:
    """What a run needs on `gpus` cards. Times leave out validation, checkpoints and waiting for data."""

    card: Card
    gpus: int
    batch_size: int
    """Windows in a step on all GPUs."""
    sequence_length: int
    link: str
    """What joins the GPUs."""
    stage: int
    """The ZeRO stage that was planned for."""
    memory: Memory
    phases: tuple[Phase, ...]
    step_seconds: float
    steps_per_epoch: int
    epoch_seconds: float
    largest_batch: int
    """Most windows a GPU that fit; 0 if not even one does."""
    recommended_stage: int
    reason: str
    """Why that stage."""
    disk: float
    """Bytes of the epoch's frames and actions as raw shards."""
    assumptions: tuple[str, ...]
    """Every rule and constant behind the figures, one a line."""

    @property
    def fits(self) -> bool:
        """Whether the planned batch fits the card."""
        return self.memory.total <= self.card.memory

    def cost(self, price: float, epochs: float = 1.0) -> float:
        """The cost of some epochs at `price` for one GPU an hour."""
        return self.epoch_seconds * epochs * self.gpus * price / 3600


def plan(
    config: TrainConfig,
    card: Card,
    gpus: int = 1,
    *,
    interconnect: Interconnect = "auto",
    epoch: Epoch = PUBLISHED,
    ds_config: str | None = None,
) -> Plan:
    """The plan of a run.

    config: its `loader.batch_size` is the batch over all GPUs. ds_config: replaces `config.ds_config`. Needs no GPU
    and trains nothing. Raises UserError where the batch does not divide or a link is not on this card.
    """
    raise NotImplementedError
