"""The random numbers of one step: each part declares what it reads, one generator draws them for the global batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

UNIFORM_MARGIN = 1e-6
"""Uniform numbers stay this far from 0 and 1."""


@dataclass(frozen=True)
class Draw(ABC):
    """One tensor of random numbers that a part reads: its name, and its shape after [B, T]."""

    name: str
    shape: tuple[int, ...] = ()
    at_rest: ClassVar[float | bool] = 0.0
    """The value in a deterministic pass."""

    def sample(self, batch: int, frames: int, generator: Generator) -> Tensor:
        """Random numbers [B, T, *shape], on the CPU."""
        return self._draw((batch, frames, *self.shape), generator)

    def rest(self, batch: int, frames: int) -> Tensor:
        """The values of a deterministic pass, [B, T, *shape]."""
        return torch.full((batch, frames, *self.shape), self.at_rest)

    @abstractmethod
    def _draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor: ...


class Normal(Draw):
    """Standard normal numbers; 0 at rest."""

    def _draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        return torch.randn(shape, generator=generator)


class Uniform(Draw):
    """Uniform numbers in (0, 1); the median at rest."""

    at_rest = 0.5

    def _draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        return torch.rand(shape, generator=generator).clamp(UNIFORM_MARGIN, 1 - UNIFORM_MARGIN)


@dataclass(frozen=True)
class Bernoulli(Draw):
    """Booleans that are true with a probability; false at rest."""

    probability: float = 0.5
    at_rest = False

    def _draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        return torch.rand(shape, generator=generator) < self.probability


@dataclass(frozen=True)
class Cells(Draw):
    """Flat (sequence, frame, cell) indices of the global batch, int64 [*shape] without [B, T]; 0 at rest."""

    cells: int = 1
    """Cells of a frame."""

    def sample(self, batch: int, frames: int, generator: Generator) -> Tensor:
        """Uniform indices int64 [*shape], on the CPU."""
        return torch.randint(batch * frames * self.cells, self.shape, generator=generator)

    def rest(self, batch: int, frames: int) -> Tensor:
        """Zeros int64 [*shape]."""
        return torch.zeros(self.shape, dtype=torch.int64)

    def _draw(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Draws:
    """The numbers of one step, by the name of their `Draw`."""

    values: dict[str, Tensor]
    shared: frozenset[str] = frozenset()
    """Names of the tensors without a batch axis."""
    first_row: int = 0
    """The global row of this slice's first sequence."""

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def rows(self, start: int, stop: int) -> "Draws":
        """The numbers of sequences `start` to `stop` of this slice."""
        values = {name: x if name in self.shared else x[start:stop] for name, x in self.values.items()}
        return replace(self, values=values, first_row=self.first_row + start)

    def to(self, device: torch.device) -> "Draws":
        """The same numbers on `device`."""
        return replace(self, values={name: x.to(device) for name, x in self.values.items()})


def sample_draws(declared: Iterable[Draw], batch: int, frames: int, generator: Generator) -> Draws:
    """Draw on the CPU, in the order declared, what `batch` windows of `frames` frames need."""
    return _collect({draw: draw.sample(batch, frames, generator) for draw in declared})


def draws_at_rest(declared: Iterable[Draw], batch: int, frames: int) -> Draws:
    """The deterministic pass: posterior means, median sticks, no imagination dropout, no latent noise."""
    return _collect({draw: draw.rest(batch, frames) for draw in declared})


def _collect(values: dict[Draw, Tensor]) -> Draws:
    shared = frozenset(draw.name for draw in values if isinstance(draw, Cells))
    return Draws({draw.name: x for draw, x in values.items()}, shared)
