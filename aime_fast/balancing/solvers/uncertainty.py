"""Uncertainty weights (Kendall, Gal & Cipolla 2018, arXiv 1705.07115): learned log-variances weigh the tasks."""

import torch
from torch import Tensor

from aime_fast.balancing.solvers.solver import Problem, Solution, Solver, State

LEARNING_RATE = 0.05
LARGEST = 10.0
"""Bound of the log-variances: weights stay between e^-10 and e^10."""


class Uncertainty(Solver):
    """Minimises sum_i exp(-s_i) L_i + s_i also over the log-variances s_i: task i gets the weight exp(-s_i).

    The slope in s_i is 1 - exp(-s_i) L_i; it is kept in [-1, 1], so that a large loss moves s_i by a bounded step. The
    objective has no minimum for L_i <= 0. Then |L_i| takes its place: the weight goes to 1/|L_i|, within the bounds.
    """

    needs_losses = True

    def initial_state(self, groups: int, tasks: int) -> State:
        """Log-variances of 0: all weights are 1 at first."""
        return {"log_variances": torch.zeros(tasks, dtype=torch.float64)}

    def solve(self, problem: Problem, state: State, losses: Tensor | None) -> Solution:
        """The present weights, the same in every group, and a gradient step on the log-variances."""
        assert losses is not None
        variances = state["log_variances"]
        weights = torch.exp(-variances)
        slope = (1 - weights * losses.abs()).clamp(-1.0, 1.0)
        following = (variances - LEARNING_RATE * slope).clamp(-LARGEST, LARGEST)
        return Solution(weights.expand_as(problem.norms), {"log_variances": following})
