"""The state of the world model, shared by training, filtering and imagination."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aime_fast.model.parts.perceiver import PerceiverMemory


@dataclass(frozen=True)
class LatentState:
    """The state of T frames of B sequences: everything about frame t that is known before action a_t.

    `cell` is None in a training pass, whose fused LSTM returns none. `memory` covers all frames up to the last one
    here; it is None where no next frame can be filtered.
    """

    latent: Tensor  # z [B, T, D]
    maps: Tensor  # where each slot looks, [B, T, S, P]; predicted for an imagined frame
    hidden: Tensor  # h_{t-1} [B, T, H]: the LSTM's output after frame t-1 and a_{t-1}, which the prior of frame t reads
    cell: Tensor | None = None  # the LSTM's cell that belongs to `hidden`, [B, T, H]
    memory: PerceiverMemory | None = None
    kept: Tensor | None = None  # a frame seen before, of which the decoder keeps some, [B, T, 3, H, W] in [-1, 1]
    seen: Tensor | None = None  # the frame itself where it was observed, for those that follow, [B, T, 3, H, W]

    @property
    def newest(self) -> Tensor | None:
        """The newest frame seen, [B, T, 3, H, W]: what a following frame may keep."""
        return self.kept if self.seen is None else self.seen

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

    def _each(self, change: Callable[[Tensor], Tensor]) -> "LatentState":
        changed = {name: change(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **changed)  # type: ignore[arg-type]


def join(states: list[LatentState]) -> LatentState:
    """States of consecutive frames as one, [B, sum of T, ...], with the memory of the last."""
    names = [name for name, x in vars(states[-1]).items() if isinstance(x, Tensor)]
    joined = {name: torch.cat([getattr(state, name) for state in states], dim=1) for name in names}
    return replace(states[-1], **joined)  # type: ignore[arg-type]
