"""The state of the world model, shared by training, filtering and imagination."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aime_fast.model.parts.perceiver import PerceiverMemory


@dataclass(frozen=True)
class LatentState:
    """The state of T frames of B sequences: everything about frame t that is known before action a_t."""

    latent: Tensor
    """z [B, T, D]."""
    context: Tensor
    """c [B, T, C]; zero for an imagined frame."""
    slots: Tensor
    """[B, T, S, d]; predicted from z for an imagined frame."""
    attention: Tensor
    """Attention state that the LSTM reads, [B, T, N]; zero for an imagined frame."""
    hidden: Tensor
    """h_{t-1} [B, T, H]: the LSTM's output after frame t-1 and a_{t-1}, which the prior of frame t reads."""
    cell: Tensor | None = None
    """The LSTM's cell that belongs to `hidden`, [B, T, H]; None in a training pass, whose fused LSTM has no cells."""
    memory: PerceiverMemory | None = None
    """The perceiver's memory of all frames up to the last one here; None where no next frame can be filtered."""

    @property
    def frames(self) -> int:
        """T."""
        return self.latent.shape[1]

    def at(self, frame: int) -> "LatentState":
        """The state of one frame, [B, 1, ...]; negative numbers count from the end. Raises IndexError."""
        index = range(self.frames)[frame]
        memory = self.memory and self.memory.until(self.memory.frames - (self.frames - 1 - index))
        return replace(self._each(lambda x: x[:, index : index + 1]), memory=memory)

    def repeat(self, samples: int) -> "LatentState":
        """Every sequence `samples` times in a row, [B * samples, T, ...], without the memory."""
        return replace(self._each(lambda x: x.repeat_interleave(samples, 0)), memory=None)

    def detach(self) -> "LatentState":
        """The same numbers without gradients."""
        return self._each(Tensor.detach)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "LatentState":
        return combine([self], lambda tensors: change(tensors[0]))


def combine(states: list[LatentState], change: Callable[[list[Tensor]], Tensor]) -> LatentState:
    """`change` of each field of all states, with the memory of the last."""
    cells = [state.cell for state in states if state.cell is not None]
    return LatentState(
        latent=change([state.latent for state in states]),
        context=change([state.context for state in states]),
        slots=change([state.slots for state in states]),
        attention=change([state.attention for state in states]),
        hidden=change([state.hidden for state in states]),
        cell=change(cells) if cells else None,
        memory=states[-1].memory,
    )


def join(states: list[LatentState]) -> LatentState:
    """States of consecutive frames as one, [B, sum of T, ...]."""
    return combine(states, lambda tensors: torch.cat(tensors, dim=1))
