"""Memory of a step on one GPU or on a CPU, by kind, at the moment that needs most."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aime_fast.config import TrainConfig
from aime_fast.model.frame_memory import kept_bytes
from aime_fast.planning.cards import Card
from aime_fast.planning.rehearsal import KINDS, Rehearsal, rehearse
from aime_fast.training.engines.ds_config import engine_settings
from aime_fast.training.engines.engine import micro_batch_size

CONTEXT = 0.89e9
"""Bytes of a CUDA context with the kernels that a step loads: card less reserved memory, four runs on one H200."""
FRAGMENTS = {True: 0.30, False: 0.09}
"""What torch's allocator holds beyond the tensors, as a part of them, in a captured step and in one as written: the
same H200 reserved 27 to 35 % and 6 to 12 % more than it allocated."""
_HOPPER = 9.0


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the moment of a step that needs most."""

    weights: float
    """Parameters and buffers, the teacher's copy included."""
    task_gradients: float
    """The tasks' gradients and the consensus direction, and one whole gradient while it is reduced."""
    optimiser: float
    """AdamW's two moments, and ZeRO's copy of the weights that it steps."""
    activations: float
    """What the forward pass keeps for the backward passes, and the inputs of this step and the next."""
    workspace: float
    """Gradients under way, results that live only within a phase, and workspaces of libraries."""
    fragments: float
    """What the allocator holds beside tensors."""
    context: float
    """The CUDA context and loaded kernels; not torch's."""
    data: float = 0.0
    """The data's frames, where they lie on the card (`--backend resident`)."""

    @property
    def allocated(self) -> float:
        """What tensors take: what `torch.cuda.max_memory_allocated` says."""
        return self.weights + self.task_gradients + self.optimiser + self.activations + self.workspace

    @property
    def total(self) -> float:
        """What the card must have."""
        return self.allocated + self.fragments + self.context + self.data


def peak_bytes(config: TrainConfig, world_size: int = 1, device_type: str = "cpu") -> int:
    """Most bytes of tensors in a step of one process: weights, gradients, optimiser and activations.

    config: its `loader.batch_size` is over all processes. device_type: "cpu" or "cuda". The frames of the data, and
    what Python and libraries take, come on top. Takes some seconds; trains nothing and allocates next to nothing.
    Raises UserError where the batch does not divide.
    """
    stage = stage_of(config, world_size)
    seen = rehearse(config, windows_of(config, world_size), device_type)
    return int(torch.stack(list(_kinds(seen.live, seen, world_size, stage).values())).sum(0).max())


def windows_of(config: TrainConfig, world_size: int) -> int:
    """Windows of one process in a step; `UserError` where the batch does not divide."""
    return micro_batch_size(config, world_size) * config.optim.accumulation


def stage_of(config: TrainConfig, world_size: int) -> int:
    """The ZeRO stage of a configuration; 0 without one."""
    return engine_settings(config, world_size).stage if config.ds_config else 0


def fitting_windows(config: TrainConfig, windows: int, world_size: int, room: float) -> int:
    """The largest part of `windows` that fits as a micro-batch into `room` bytes of a GPU; 0 if none does.

    config: of the run on `world_size` GPUs whose micro-batch of `windows` did not fit.
    """
    stage, overhead = stage_of(config, world_size), 1 + FRAGMENTS[config.cuda_graph != "off"]
    for number in range(windows // 2, 0, -1):
        if windows % number == 0:
            # Two rounds hold what any number of rounds holds, but for the frames of all windows that are remembered.
            rounds = replace(config, optim=replace(config.optim, accumulation=2), ds_config=None)
            seen = rehearse(rounds, 2 * number, "cuda")
            need = torch.stack(list(_kinds(seen.live, seen, world_size, stage).values())).sum(0).max()
            more = kept_bytes(config, windows * config.optim.accumulation) - kept_bytes(config, 2 * number)
            if overhead * float(need) + more <= room:
                return number
    return 0


def memory_of(seen: Rehearsal, card: Card, world_size: int, stage: int, captured: bool) -> Memory:
    """The memory of a rehearsed step on each of `world_size` cards."""
    return _at_peak(seen.live, seen, card, world_size, stage, captured)


def largest_windows(
    one: Rehearsal, other: Rehearsal, windows: tuple[int, int], card: Card, world_size: int, stage: int, captured: bool
) -> int:
    """Most windows a card in a step, from rehearsals on two numbers of windows; 0 if not even one fits.

    Both have the same events, and between them the memory of each grows by equal steps: so it does beyond. Raises
    ValueError for rehearsals of other steps.
    """
    if one.live.shape != other.live.shape:
        raise ValueError(f"rehearsals have {one.live.shape[1]} and {other.live.shape[1]} events; they are not one step")
    slope = (other.live - one.live).double() / (windows[1] - windows[0])
    base = one.live.double() - slope * windows[0]
    low, high = 0, 1

    def fits(number: int) -> bool:
        return _at_peak(base + slope * number, one, card, world_size, stage, captured).total <= card.memory

    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _at_peak(live: Tensor, seen: Rehearsal, card: Card, world_size: int, stage: int, captured: bool) -> Memory:
    kinds = _kinds(live, seen, world_size, stage)
    kinds["workspace"] = kinds["workspace"] + library_workspace(card)
    peak = int(torch.stack(list(kinds.values())).sum(0).argmax())
    at = {kind: float(curve[peak]) for kind, curve in kinds.items()}
    return Memory(**at, fragments=FRAGMENTS[captured] * sum(at.values()), context=CONTEXT)


def library_workspace(card: Card) -> float:
    """Bytes that torch gives cuBLAS in each of two threads, the main one and autograd's.

    32 MiB each from Hopper on, 8.1 MiB before (`CUBLAS_WORKSPACE_CONFIG`).
    """
    return 2 * 32 * 2**20 if card.capability >= _HOPPER else 2 * (2 * 4096 + 8 * 16) * 2**10


def _kinds(live: Tensor, seen: Rehearsal, world_size: int, stage: int) -> dict[str, Tensor]:
    """The curve of each kind on one of `world_size` ranks.

    Task gradients and the direction are shards on several ranks. One task's gradient is whole until it is reduced.
    ZeRO-1 and 2 step a shard of a copy of the weights; ZeRO-3 keeps a shard of them and gathers all for a step.
    """
    kinds = dict(zip(KINDS, live.double(), strict=True))
    if world_size == 1 and stage == 0:
        return kinds
    weights = 4.0 * seen.parameters
    kinds["task_gradients"] = kinds["task_gradients"] / world_size
    if world_size > 1:
        kinds["task_gradients"] = kinds["task_gradients"] + seen.largest_gradient
    if stage:
        kinds["optimiser"] = (kinds["optimiser"] + weights) / world_size
    return kinds
