"""Multiple-gradient descent: the shortest vector in the convex hull of the task gradients (Désidéri 2012)."""

import torch
from torch import Tensor

from aime_fast.balancing.solvers.solver import Problem, Solution, Solver, State
from aime_fast.balancing.solvers.subsets import restricted, subsets


class MGDA(Solver):
    """Minimises |sum_i w_i g_i| over w >= 0, sum_i w_i = 1: no task's loss rises to first order.

    Exact: on the face of the hull that holds the minimum, w solves a linear system; every face is tried. Tasks without
    a gradient take no part.
    """

    least_tasks, most_tasks = 2, 8

    def solve(self, problem: Problem, state: State, losses: Tensor | None) -> Solution:
        """The weights of the face whose point is shortest."""
        n = problem.norms.shape[1]
        largest = problem.norms.square().amax(1)
        gram = problem.gram / torch.where(largest > 0, largest, 1.0)[:, None, None]
        faces = subsets(n, gram.device)[:-1]
        # Minimise w'Gw/2 on the face's affine hull: [G 1; 1' 0] [w; -t] = [0; 1].
        border = faces.to(gram.dtype).expand(len(gram), -1, -1)
        system = torch.cat([restricted(gram, faces), border[:, :, None]], 2)
        border = torch.nn.functional.pad(border, (0, 1))
        system = torch.cat([system, border[..., None]], 3)
        right = torch.zeros_like(border)
        right[..., -1].fill_(1.0)  # an assignment would copy the number from the host
        weights = torch.linalg.solve_ex(system, right)[0][..., :-1]
        # A candidate off the simplex is moved onto it: every one is feasible then, and the shortest is the answer.
        weights = torch.nan_to_num(weights * faces, nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0.0)
        total = weights.sum(2, keepdim=True)
        weights = torch.where(total > 0, weights / total, faces / faces.sum(1, keepdim=True))
        squares = ((weights @ gram) * weights).sum(2)
        squares = torch.where((faces & ~problem.active[:, None]).any(2), torch.inf, squares)
        best = squares.argmin(1)[:, None, None].expand(-1, 1, n)
        return Solution(weights.gather(1, best)[:, 0], state)
