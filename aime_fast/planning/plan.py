"""`plan`: memory, time, network, disk and cost of a run on cards that need not be there."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from aime_fast.balancing.layouts.communication import Traffic, traffic
from aime_fast.balancing.layouts.rounded import CODE
from aime_fast.config import TrainConfig
from aime_fast.data.backends import SHARE
from aime_fast.errors import UserError, check_at_least
from aime_fast.planning import clock, memory, network
from aime_fast.planning.cards import Card
from aime_fast.planning.clock import Bound, device_time, host_time
from aime_fast.planning.counting import Kernel
from aime_fast.planning.fusion import compiled
from aime_fast.planning.memory import Memory, largest_windows, memory_of, stage_of, windows_of
from aime_fast.planning.network import Interconnect, Link, link_of, waiting
from aime_fast.planning.ranks import on_a_rank
from aime_fast.planning.rehearsal import Rehearsal, Sending, computing, rehearse, with_sizes


@dataclass(frozen=True)
class Epoch:
    """What one pass over the data is: windows that start at every `stride`-th frame of every episode."""

    episodes: int = 2000
    frames: int = 500
    stride: int = 16

    @classmethod
    def of(cls, text: str) -> Epoch:
        """The epoch that `EPISODESxFRAMES/STRIDE` means; `UserError` for other texts and for zeros."""
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)/([1-9]\d*)", text)
        if found is None:
            raise UserError(f"--epoch must be EPISODESxFRAMES/STRIDE such as 2000x500/16, not {text!r}")
        return cls(*map(int, found.groups()))

    def windows(self, length: int) -> int:
        """Windows of `length` frames."""
        return self.episodes * max(0, (self.frames - length) // self.stride + 1)


PUBLISHED = Epoch()
"""The published DMC-VB subset: 2,000 episodes of 500 frames, stride 16."""


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


@dataclass(frozen=True)
class Step:
    """One step of one GPU, with what joins it to the others."""

    phases: tuple[Phase, ...]
    seconds: float
    sent: Traffic


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
    and trains nothing; takes seconds. Raises UserError where the batch does not divide, for a link that the cards do
    not have, and for windows that are longer than the epoch's episodes.
    """
    check_at_least(1, gpus=gpus)
    config = with_sizes(replace(config, ds_config=ds_config or config.ds_config))
    windows, link = windows_of(config, gpus), link_of(card, gpus, interconnect)
    steps = epoch.windows(config.loader.sequence_length) // config.loader.batch_size
    if steps < 1:
        raise UserError(
            f"an epoch of {epoch.episodes} episodes of {epoch.frames} frames has no batch of "
            f"{config.loader.batch_size} windows of {config.loader.sequence_length} frames"
        )
    seen = rehearse(config, windows, "cuda")
    # A batch of one takes other ways through torch than all larger ones.
    trials = (windows, 2 * windows) if windows > config.optim.accumulation else (2 * windows, 3 * windows)
    one, other = (rehearse(config, number, "cuda") for number in trials)
    frames = frame_bytes(config, epoch)
    held = frames if keeps_frames(config, card, frames) else 0.0

    def at(stage: int) -> Memory:
        return replace(memory_of(seen, card, gpus, stage, captured(config, stage)), data=held)

    recommended, reason = _stage(card, [at(stage) for stage in (range(4) if gpus > 1 else range(1))])
    stage = stage_of(config, gpus) if config.ds_config else recommended
    step = step_of(config, seen, card, gpus, link, stage)
    room = replace(card, memory=card.memory - held)
    most = largest_windows(one, other, trials, room, gpus, stage, captured(config, stage))
    return Plan(
        card=card,
        gpus=gpus,
        batch_size=config.loader.batch_size,
        sequence_length=config.loader.sequence_length,
        link=link.title if gpus > 1 else "one GPU",
        stage=stage,
        memory=at(stage),
        phases=step.phases,
        step_seconds=step.seconds,
        steps_per_epoch=steps,
        epoch_seconds=steps * step.seconds,
        largest_batch=most,
        recommended_stage=recommended,
        reason=reason,
        disk=frames,
        assumptions=tuple(_assumptions(config, card, gpus, epoch, stage, held)),
    )


def step_of(config: TrainConfig, seen: Rehearsal, card: Card, gpus: int, link: Link, stage: int) -> Step:
    """The time of a rehearsed step on each of `gpus` cards."""
    kernels, sending = compiled(seen.kernels) if is_compiled(config) else seen.kernels, Sending.of(config)
    kernels = on_a_rank(kernels, seen, gpus, stage, sending, config.optim.accumulation)
    phases = _phases(kernels, card, config.optim.tf32)
    sent = traffic(
        seen.sizes,
        seen.reach,
        gpus,
        stage,
        sending.gradients,
        sending.update,
        tasks=seen.tasks,
        micro_batches=config.optim.accumulation,
        frozen=seen.frozen,
        groups=1 if config.balancing.groups == "all" else 2,
        direction=config.balancing.solver == "rotation",
    )
    backward = [phase.seconds for phase in phases if phase.name.startswith("backward/")]
    busy = sum(phase.seconds for phase in phases)
    wait = waiting(backward, sent, link, gpus)
    if gpus > 1:
        phases.append(Phase("network", wait, "network", 0, 0.0, 0.0, sent.total))
    host = 0.0 if captured(config, stage) else max(0.0, host_time(kernels) - busy)
    if host:
        phases.append(Phase("host", host, "launches", 0, 0.0, 0.0))
    return Step(tuple(phases), busy + wait + host, sent)


def captured(config: TrainConfig, stage: int) -> bool:
    """Whether the step is a CUDA graph."""
    return config.cuda_graph != "off" and stage < 3


def is_compiled(config: TrainConfig) -> bool:
    """Whether the step is compiled: on a GPU it is unless the configuration says otherwise."""
    return config.compile != "off"


def frame_bytes(config: TrainConfig, epoch: Epoch) -> float:
    """Bytes of the epoch's frames, actions, rewards and ends, not compressed."""
    model = config.model
    return float(epoch.episodes * epoch.frames * (3 * model.image_size**2 + 4 * model.action_dim + 4 + 1))


def keeps_frames(config: TrainConfig, card: Card, size: float) -> bool:
    """Whether all frames lie on each card, as `open_backend` chooses."""
    return config.backend == "resident" or (config.backend == "auto" and size <= SHARE * (card.memory - memory.CONTEXT))


def _phases(kernels: tuple[Kernel, ...], card: Card, tf32: bool) -> list[Phase]:
    """The phases in the order in which they begin; each has all of its kernels."""
    order = {name: position for position, name in enumerate(dict.fromkeys(_phase(k) for k in kernels))}
    ordered = sorted(kernels, key=lambda k: order[_phase(k)])
    phases = []
    for name, group in groupby(ordered, key=_phase):
        own = list(group)
        time = device_time(own, card, tf32)
        count, flops, moved = (sum(values) for values in zip(*((k.count, k.flops, k.bytes) for k in own), strict=True))
        phases.append(Phase(name, time.seconds, time.bound, int(count), flops, moved))
    return phases


def _phase(kernel: Kernel) -> str:
    """A kernel's phase; what stands between phases belongs to the step."""
    return "step" if kernel.phase in ("elsewhere", "backward") or "Optimizer" in kernel.phase else kernel.phase


def _stage(card: Card, needs: list[Memory]) -> tuple[int, str]:
    """The ZeRO stage to take, and why. needs: memory by stage."""
    first = f"{needs[0].total / 1e9:.1f} of {card.memory / 1e9:.1f} GB"
    if needs[0].total <= card.memory:
        return 0, f"all fits ({first}); ZeRO-1 and 2 step from the host, ZeRO-3 is no CUDA graph"
    for stage, need in enumerate(needs):
        if need.total <= card.memory:
            return stage, f"ZeRO-0 needs {first}, ZeRO-{stage} {need.total / 1e9:.1f}"
    return len(needs) - 1, f"no stage fits: ZeRO-0 needs {first}; take a smaller batch"


def _assumptions(config: TrainConfig, card: Card, gpus: int, epoch: Epoch, stage: int, held: float) -> list[str]:
    """Every rule behind the figures."""
    form = "one CUDA graph" if captured(config, stage) else "as written"
    made = "compiled by rule (fusion.py)" if is_compiled(config) else "not compiled"
    sending, names = Sending.of(config), {torch.float32: "float32", torch.bfloat16: "bfloat16", CODE: "8 bits"}
    gathered = f"the update in {names[sending.update]}" if stage == 0 else "parameters in float32"
    precision = "bfloat16" if computing(config) == "bf16" else "TF32" if config.optim.tf32 else "float32"
    return [
        f"batch {config.loader.batch_size} over all GPUs, {config.loader.batch_size // gpus} on each; the step {form}, "
        f"{made}, products in {precision}",
        f"actions of {config.model.action_dim} numbers, frames of {config.model.image_size} pixels",
        f"an epoch is {epoch.episodes} episodes of {epoch.frames} frames, stride {epoch.stride}; validation, "
        "checkpoints and waiting for data are left out",
        f"{card.title}: {card.source}",
        f"long kernels reach {clock.REACHED:g} of a peak, a multiprocessor at most {clock.BYTES_EACH / 1e9:g} GB/s "
        f"and {clock.FLOPS_EACH / 1e12:g} TFLOP/s; a kernel takes {clock.STARTING * 1e6:g} us beside its work: "
        "fitted to one H200, not verified on other cards",
        f"a context takes {memory.CONTEXT / 1e9:g} GB, the allocator "
        f"{memory.FRAGMENTS[captured(config, stage)]:.0%} beyond tensors, as on that H200",
        "frames lie on every card" if held else "frames stay in the host's memory",
        f"links reach {network.REACHED:g} of their peak (assumed), {network.GPUS_PER_MACHINE} GPUs a machine; a task's "
        f"reduction runs beside the next task's backward pass; gradients are sent in {names[sending.gradients]}, "
        f"{gathered}; to round them takes time of its own",
    ]
