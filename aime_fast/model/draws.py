"""The random numbers of one step: each part declares what it reads, one generator draws them for the global batch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

UNIFORM_MARGIN = 1e-6
"""Uniform numbers stay this far from 0 and 1."""


@dataclass(frozen=True)
class Draw:
    """One tensor of random numbers that a part reads.

    Kinds, with the value of the deterministic pass: "normal", standard normal (0); "uniform" in (0, 1) (0.5);
    "fraction" in [0, 1) (0); "mask", bool, true with `probability` (False); "cells", int64 [*shape] without [B, T],
    flat (sequence, frame, cell) indices of the global batch, whose frames have `cells` cells each (0).
    """

    name: str
    kind: Literal["normal", "uniform", "fraction", "mask", "cells"]
    shape: tuple[int, ...] = ()  # after [B, T]
    probability: float = 0.5
    cells: int = 1

    def sample(self, batch: int, frames: int, generator: Generator) -> Tensor:
        """Random numbers [B, T, *shape], on the CPU."""
        shape = (batch, frames, *self.shape)
        if self.kind == "normal":
            return torch.randn(shape, generator=generator)
        if self.kind == "cells":
            return torch.randint(batch * frames * self.cells, self.shape, generator=generator)
        uniform = torch.rand(shape, generator=generator)
        if self.kind == "fraction":
            return uniform
        return uniform < self.probability if self.kind == "mask" else uniform.clamp(UNIFORM_MARGIN, 1 - UNIFORM_MARGIN)

    def rest(self, batch: int, frames: int) -> Tensor:
        """The values of the deterministic pass, [B, T, *shape]."""
        value = {"normal": 0.0, "uniform": 0.5, "fraction": 0.0, "mask": False, "cells": 0}[self.kind]
        return torch.full(self.shape if self.kind == "cells" else (batch, frames, *self.shape), value)


@dataclass(frozen=True)
class Draws:
    """The numbers of one step, by the name of their `Draw`."""

    values: dict[str, Tensor]
    shared: frozenset[str] = frozenset()  # names of the tensors without a batch axis
    first_row: int = 0  # the global row of this slice's first sequence

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def rows(self, start: int, stop: int) -> "Draws":
        """The numbers of sequences `start` to `stop` of this slice."""
        values = {name: x if name in self.shared else x[start:stop] for name, x in self.values.items()}
        return replace(self, values=values, first_row=self.first_row + start)

    def repeat(self, times: int) -> "Draws":
        """The numbers of all sequences, `times` times over."""
        values = {name: x if name in self.shared else torch.cat([x] * times) for name, x in self.values.items()}
        return replace(self, values=values)

    def to(self, device: torch.device) -> "Draws":
        """The same numbers on `device`."""
        return replace(self, values={name: x.to(device) for name, x in self.values.items()})


def make_draws(declared: Iterable[Draw], batch: int, frames: int, generator: Generator | None) -> Draws:
    """Draw, in the order declared, for `batch` windows of `frames` frames; no generator: the deterministic pass."""
    declared = list(declared)
    made = (d.sample(batch, frames, generator) if generator else d.rest(batch, frames) for d in declared)
    values = {draw.name: x for draw, x in zip(declared, made, strict=True)}
    return Draws(values, frozenset(draw.name for draw in declared if draw.kind == "cells"))
