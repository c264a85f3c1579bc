"""PCGrad (Yu et al. 2020, arXiv 2001.06782): each task gradient loses its conflicting parts, in a random order."""

import torch
from torch import Tensor

from aime_fast.balancing.solvers.solver import Problem, Solution, Solver, State


class PCGrad(Solver):
    """Projects g_i onto the normal plane of each g_j that it conflicts with, j in a new order each step, and sums."""

    least_tasks = 2

    def initial_state(self, groups: int, tasks: int) -> State:
        """The step, which decides the orders."""
        return {"counter": torch.zeros((), dtype=torch.int64)}

    def solve(self, problem: Problem, state: State, losses: Tensor | None) -> Solution:
        """Row i of `weights` are those of the projected g_i."""
        n, gram = problem.norms.shape[1], problem.gram
        unit = torch.eye(n, dtype=gram.dtype, device=gram.device)
        weights = unit.expand_as(gram)
        square = problem.norms.square().clamp(min=torch.finfo(gram.dtype).tiny)
        for others in orders(state["counter"], n).unbind(1):
            product = (weights * gram[:, others]).sum(2)
            step = torch.where((product < 0) & (others != torch.arange(n, device=gram.device)), product, 0.0)
            weights = weights - (step / square[:, others])[:, :, None] * unit[others]
        return Solution(weights.sum(1), {"counter": state["counter"] + 1})


def orders(counter: Tensor, n: int) -> Tensor:
    """A random order of all tasks for each task, [n, n]: the splitmix64 hash of the step decides on every device."""
    keys = (counter * n * n + torch.arange(1, n * n + 1, device=counter.device)) * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        keys = (keys ^ (keys >> shift)) * factor
    return keys.view(n, n).argsort(1)
