"""UPGrad (Quinton & Rey 2024, arXiv 2406.16232): the mean of the task gradients, each freed of its conflicts."""

import torch
from torch import Tensor

from aime_fast.balancing.solvers.solver import NEGLIGIBLE, Problem, Solution, Solver, State
from aime_fast.balancing.solvers.subsets import restricted, subsets

REGULARISATION = 1e-4
"""Added to the diagonal of the Gram matrix of unit trace, as TorchJD does: makes every projection unique."""


class UPGrad(Solver):
    """Projects each task gradient onto the dual cone of all and averages: no task's loss rises to first order.

    The projection of g_i is sum_k v_k g_k for the v that minimises v'Gv over v >= e_i. Exact: v_k = (e_i)_k outside
    some subset F of tasks, and (Gv)_k = 0 on F; every F is tried. Averages run over tasks with a gradient.
    """

    least_tasks, most_tasks = 2, 8

    def solve(self, problem: Problem, state: State, losses: Tensor | None) -> Solution:
        """The weights of the subsets that violate the conditions of optimality least."""
        n = problem.norms.shape[1]
        trace = problem.norms.square().sum(1)[:, None, None]
        unit = torch.eye(n, dtype=trace.dtype, device=trace.device)
        gram = problem.gram / trace.clamp(min=NEGLIGIBLE**2) + REGULARISATION * unit
        free = subsets(n, gram.device)
        # Column i of everything below is the problem of task i.
        right = torch.where(free[:, :, None], -gram[:, None], 0.0)
        added = torch.linalg.solve_ex(restricted(gram, free), right)[0]
        vectors = unit + added
        violation = -torch.where(free[:, :, None], added, gram[:, None] @ vectors)
        best = violation.amax(2).argmin(1)[:, None, None].expand(-1, 1, n, n)
        return Solution(vectors.gather(1, best)[:, 0].sum(2) / problem.n_active, state)
