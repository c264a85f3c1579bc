"""All frames of some episodes as a finished model perceives them: what the fitting reads in place of pixels."""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from aime_fast.data.batch import Batch
from aime_fast.data.store import Episodes
from aime_fast.errors import UserError
from aime_fast.evaluation.windows import Windows
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel

MOST = 1 << 17
"""Frames that are perceived at most, some 200 MB of `small`; of longer recordings evenly spaced episodes are taken."""


@dataclass(frozen=True)
class Perceived:
    """N frames, or windows [B, T] of them: each tensor starts so."""

    mean: Tensor
    """Posterior means of z, [N, D]."""
    log_var: Tensor
    """[N, D]."""
    maps: Tensor
    """Where each slot looks, [N, S, P]."""
    centres: Tensor
    """[N, S, 2]."""
    actions: Tensor
    """[N, A]."""
    rewards: Tensor
    """[N]."""
    dones: Tensor
    """bool [N]."""
    terminated: Tensor
    """bool [N]."""

    def windows(self, first: Tensor, length: int) -> "Perceived":
        """The windows [B, T] that begin at the frames `first`, int64 [B]."""
        at = first[:, None] + torch.arange(length, device=first.device)
        return Perceived(*(getattr(self, field.name)[at] for field in fields(self)))

    def to(self, device: torch.device) -> "Perceived":
        """The same on `device`."""
        return Perceived(*(getattr(self, field.name).to(device) for field in fields(self)))

    def batch(self) -> Batch:
        """Windows [B, T] as a batch without pixels, for the targets of the tasks' heads."""
        nothing = torch.empty(*self.rewards.shape, 0, 0, 3, dtype=torch.uint8, device=self.rewards.device)
        return Batch(nothing, self.actions, self.rewards, self.dones, self.terminated)


@dataclass(frozen=True)
class Recording:
    """Perceived episodes, and where their windows begin."""

    frames: Perceived
    episodes: list[int]
    """Their numbers in the store."""
    lengths: list[int]
    """Frames of each episode."""
    example: SequenceOutputs
    """The pass over some of these frames."""

    def firsts(self, length: int, episodes: range) -> Tensor:
        """The first frames of all windows of `length` in these episodes, int64 [W]."""
        begins = self._begins
        found = [np.arange(begins[e], begins[e + 1] - length + 1) for e in episodes]
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *found]))

    def places(self, firsts: Tensor) -> np.ndarray:
        """The store's episode of these frames, and their place in it, int64 [W, 2]."""
        episode = np.searchsorted(self._begins, firsts.numpy(), side="right") - 1
        return np.stack([np.array(self.episodes)[episode], firsts.numpy() - self._begins[episode]], 1)

    @cached_property
    def _begins(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths)])


@torch.no_grad()
def perceive(model: WorldModel, store: Episodes, length: int, least: int = 2) -> Recording:
    """Perceive the episodes of at least `length` frames, in windows of `length` that follow each other.

    The last window of an episode ends with it. The model is in evaluation mode; what is found lies on the CPU.
    `UserError` if fewer than `least` episodes, two or one, are so long.
    """
    chosen = _chosen(store.lengths, length, least)
    places = [(e, start) for e in chosen for start in _starts(store.lengths[e], length)]
    begins = np.concatenate([[0], np.cumsum([store.lengths[e] for e in chosen])])
    begin_of = dict(zip(chosen, begins.tolist(), strict=False))
    windows, device = Windows(store, length, np.array(places)), model.mean_frame.device
    kept, example = {}, None
    for rows, batch in windows.parts():
        example = outputs = model(batch.frames().to(device), batch.actions.to(device))
        attention = outputs.attention
        found = (outputs.posterior_mean, outputs.posterior_log_var, attention.maps, attention.centres)
        known = (batch.actions, batch.rewards, batch.dones, batch.terminated)
        for name, values in zip((field.name for field in fields(Perceived)), (*found, *known), strict=True):
            if name not in kept:
                kept[name] = values.new_empty(int(begins[-1]), *values.shape[2:], device="cpu")
            for row, number in enumerate(rows):
                first = begin_of[places[number][0]] + places[number][1]
                kept[name][first : first + length] = values[row].cpu()
    assert example is not None  # there are windows
    return Recording(Perceived(**kept), chosen, [store.lengths[e] for e in chosen], example)


def _chosen(lengths: list[int], length: int, least: int) -> list[int]:
    long = [e for e, frames in enumerate(lengths) if frames >= length]
    if not long:
        raise UserError(f"no episode has {length} frames or more; record longer ones")
    if len(long) < least:
        raise UserError(
            f"{len(long)} training episodes have {length} frames or more, and two are needed, of which one is kept "
            "aside; record more or longer ones"
        )
    while sum(lengths[e] for e in long) > MOST and len(long) > 2:
        long = [long[i] for i in np.linspace(0, len(long) - 1, max(2, len(long) * 9 // 10)).round().astype(int)]
    return long


def _starts(frames: int, length: int) -> list[int]:
    return sorted({*range(0, frames - length + 1, length), frames - length})


def spread(firsts: Tensor, most: int) -> Tensor:
    """At most `most` of these, evenly spaced."""
    return firsts[torch.linspace(0, len(firsts) - 1, min(most, len(firsts))).round().long()]
