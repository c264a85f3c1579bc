"""What a solver is: a pure function from small Gram matrices to weights of the task gradients."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from aime_fast.config import BalancingConfig

NEGLIGIBLE = torch.finfo(torch.float32).tiny
"""A gradient of at most this norm counts as zero: the inverse of a smaller norm does not fit into float32."""
CANCELLED = 1e-6
"""Unit vectors whose mean is at most this long cancel: their mean has no direction beyond float32's rounding."""

State = dict[str, Tensor]


class Problem(NamedTuple):
    """The Gram matrices of G groups of parameters and what follows from them; float64, finite, n tasks."""

    gram: Tensor
    """[G, n, n] of the task gradients, or [G, n+1, n+1] with the consensus direction last."""
    norms: Tensor
    """[G, n]: |g_i|."""
    active: Tensor
    """[G, n] bool: tasks with a gradient."""
    inverse: Tensor
    """[G, n]: 1/|g_i|; 0 for a task without a gradient."""
    n_active: Tensor
    """[G, 1]: active tasks, at least 1."""
    cosines: Tensor
    """[G, n, n]: cosines between task gradients; 0 beside a task without a gradient."""
    mean_length: Tensor
    """[G, 1]: length of the mean unit gradient."""
    cancelled: Tensor
    """[G, 1] bool: the unit gradients of active tasks sum to zero."""
    units: Tensor
    """[G, n or n+1, n or n+1]: `cosines`, and those of the consensus direction if `gram` has it."""
    inverses: Tensor
    """[G, n or n+1]: `inverse`, and that of the direction."""

    @classmethod
    def of(cls, gram: Tensor, tasks: int) -> "Problem":
        """Read finite Gram matrices [G, n or n+1, n or n+1] of n = `tasks` tasks."""
        lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
        inverses = inverse_above(lengths, NEGLIGIBLE)
        units = (inverses.unsqueeze(2) * gram * inverses.unsqueeze(1)).clamp(-1.0, 1.0)
        norms, inverse, cosines = lengths[:, :tasks], inverses[:, :tasks], units[:, :tasks, :tasks]
        active = inverse > 0
        n_active = active.sum(1, keepdim=True, dtype=gram.dtype).clamp(min=1)
        mean_length = cosines.sum((1, 2)).unsqueeze(1).clamp(min=0.0).sqrt() / n_active
        cancelled = active.any(1, keepdim=True) & (mean_length <= CANCELLED)
        return cls(gram, norms, active, inverse, n_active, cosines, mean_length, cancelled, units, inverses)


def inverse_above(x: Tensor, least: float) -> Tensor:
    """1/x, and 0 where x is at most `least`."""
    return F.threshold(x, least, math.inf).reciprocal()


class Solution(NamedTuple):
    """What a solver decides; float64."""

    weights: Tensor
    """[G, n] of the task gradients in the update, or [G, n+1] with the weight of the next direction last."""
    state: State
    """The next state: the names and shapes of `Solver.initial_state`."""
    direction: Tensor | None = None
    """[G, n+1]: weights of the task gradients and the old direction in the next one."""
    angles: Tensor | None = None
    """[G, n]: radians by which the gradients are turned; None reports zeros."""
    projections: Tensor | None = None
    """[G, n]: cosines between the task gradients and the next direction; None reports zeros."""


class Solver(ABC):
    """One way to weigh task gradients. It never sees a long vector, so it is the same on any number of ranks.

    A subclass sets the class variables and `solve`. Nothing in `solve` may wait for the device: no `.item()`, no
    branch on a tensor's value.
    """

    needs_direction: ClassVar[bool] = False
    """Whether the layout keeps a consensus direction, and the Gram matrices include it."""
    needs_losses: ClassVar[bool] = False
    """Whether `solve` gets the loss values."""
    least_tasks: ClassVar[int] = 1
    most_tasks: ClassVar[int | None] = None

    def __init__(self, config: BalancingConfig) -> None:
        self.config = config

    def initial_state(self, groups: int, tasks: int) -> State:
        """Small CPU tensors that last from step to step; a step that is not finite does not change them."""
        return {}

    @abstractmethod
    def solve(self, problem: Problem, state: State, losses: Tensor | None) -> Solution:
        """Decide the weights. losses: float64 [n], means over the global batch, for solvers that need them."""
