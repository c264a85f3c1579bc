"""Rotation-based gradient balancing (OpenReview l0QAezg8HX) on Gram matrices.

All vectors of the method lie in span{g_1..g_n, d}, so their inner products, the objective over the angles and its
derivative follow from the Gram matrix of {g_1..g_n, d}. docs/balancing.md has the derivation and the edge cases.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from aime_fast.balancing.solvers.solver import CANCELLED, Problem, Solution, Solver, State, inverse_above

ALIGNED = 0.999
"""Above this cosine with d a task is aligned with it; below its negative the task is opposed to it."""
OPPOSED_ANGLE = math.acos(ALIGNED)
"""Angle from which the search starts for an opposed task, and for tasks that cancel: there angle 0 is a saddle."""
LARGEST_ANGLE = math.pi / 2 - 1e-6


class Rotation(Solver):
    """Turns each unit gradient towards a consensus direction d and averages; the update has norm 1 at most."""

    needs_direction = True

    def initial_state(self, groups: int, tasks: int) -> State:
        """The angles where the next search starts, and the number of steps so far."""
        angles = torch.zeros(groups, tasks, dtype=torch.float64)
        return {"angles": angles, "counter": torch.zeros((), dtype=torch.int64)}

    def solve(self, problem: Problem, state: State, losses: Tensor | None) -> Solution:
        """Find the angles by gradient descent; the last row and column of the Gram matrices are d's, or zero."""
        count, angles = problem.n_active, state["angles"]
        consensus = _consensus(problem, self.config.mu)
        p = consensus.projections

        movable = problem.active & (consensus.exists & (count > 1))
        turning = movable & (p <= ALIGNED)
        free = turning & (p >= -ALIGNED)
        per_sine = (1 - p.square()).rsqrt().masked_fill(~free, 0.0)
        largest = turning * torch.full_like(p, LARGEST_ANGLE)
        start = torch.clamp(angles, torch.zeros_like(largest), largest)
        flat = turning & (~free | problem.cancelled)
        start = torch.where(flat, start.clamp(min=OPPOSED_ANGLE), start)
        found = self._search(start, largest, _pair_products(problem.cosines, p, per_sine), count)

        used = found
        if self.config.update_interval > 1:
            rotate = state["counter"] % self.config.update_interval == 0
            used, movable = found * rotate, movable & rotate
        lift = used.sin() * per_sine
        factor = problem.inverse * (self._scale(problem) / count)
        weights = torch.addcmul(used.cos(), lift, p, value=-1) * factor
        along = lift.sum(1, keepdim=True) * (self._scale(problem) / count)
        return Solution(
            weights=torch.cat([weights, along], 1),
            state={"angles": torch.where(movable, found, angles), "counter": state["counter"] + 1},
            direction=consensus.direction,
            angles=used,
            projections=p,
        )

    def _search(self, angles: Tensor, largest: Tensor, products: Tensor, count: Tensor) -> Tensor:
        """Gradient descent on J(a) = sum_{i<j} (1 - r_i.r_j) / (N(N-1)) + lambda/(2N) sum_i (1 - cos a_i); [G, n].

        dJ/da_i = (sin a_i sum_j u_i.r_j - cos a_i sum_j w_i.r_j) / (N(N-1)) + lambda/(2N) sin a_i, over j other than i.
        Angles stay in [0, largest]; a task that does not turn has largest = 0.
        """
        least = torch.zeros_like(largest)
        size = self.config.lr_inner / (count * (count - 1).clamp(min=1))
        pull = torch.cat([(self.config.lr_inner * self.config.lambd / 2) / count.expand_as(angles), least], 1)
        products = products * size.unsqueeze(2)
        for _ in range(self.config.alpha_steps):
            cos, sin = angles.cos(), angles.sin()
            along = torch.baddbmm(pull.unsqueeze(2), products, torch.cat([cos, sin], 1).unsqueeze(2))
            along_u, along_w = along.squeeze(2).chunk(2, 1)
            angles = torch.addcmul(torch.addcmul(angles, cos, along_w), sin, along_u, value=-1)
            angles = torch.clamp(angles, least, largest)
        return angles

    def _scale(self, problem: Problem) -> Tensor | float:
        """The factor on the update: 1, or the mean or root mean square of the active tasks' gradient norms, [G, 1]."""
        if self.config.rescale == "mean":
            return problem.norms.sum(1, keepdim=True) / problem.n_active
        if self.config.rescale == "rms":
            return (problem.norms.square().sum(1, keepdim=True) / problem.n_active).sqrt()
        return 1.0


class _Consensus(NamedTuple):
    """The next direction d, and what it says of the tasks."""

    direction: Tensor
    """[G, n+1]: weights of the task gradients and the old direction in d."""
    projections: Tensor
    """[G, n]: cosines between the task gradients and d."""
    exists: Tensor
    """[G, 1] bool."""


def _consensus(problem: Problem, mu: float) -> _Consensus:
    """Blend the old direction with the mean unit gradient; the old one stays where either has no direction."""
    tasks = problem.norms.shape[1]
    history = problem.units[:, -1:, -1]  # the old direction's cosine with itself: 1, or 0 if there is none
    keep = mu * history
    per_mean = inverse_above(problem.mean_length, CANCELLED)
    share = (1 - keep) * per_mean / problem.n_active
    blend = torch.cat([share.expand(-1, tasks), keep], 1)
    along = (problem.units @ blend.unsqueeze(2)).squeeze(2)
    per_length = inverse_above((blend * along).sum(1, keepdim=True).clamp(min=0.0).sqrt(), CANCELLED)
    blended = per_mean * per_length > 0
    direction = blend * per_length * problem.inverses
    # A direction that stays is left bit for bit, not normalised again.
    decay = direction[:, tasks:].masked_fill(~blended, 1.0)
    return _Consensus(
        direction=torch.cat([direction[:, :tasks], decay], 1),
        projections=torch.where(blended, along * per_length, problem.units[:, -1])[:, :tasks].clamp(-1.0, 1.0),
        exists=blended | (history > 0),
    )


def _pair_products(cosines: Tensor, p: Tensor, per_sine: Tensor) -> Tensor:
    """Inner products of {u_1..u_n, w_1..w_n} between different tasks, [G, 2n, 2n].

    w_i = (d - p_i u_i) / sin_i; `per_sine` is 1 / sin_i, and 0 for a task without w.
    """
    p_i, per_i = p[:, :, None], per_sine[:, :, None]
    u_w = torch.addcmul(p_i, p[:, None], cosines, value=-1) * per_sine[:, None]
    d_w = (1 - p.square()) * per_sine
    w_w = torch.addcmul(d_w[:, None], p_i, u_w, value=-1) * per_i
    products = torch.cat([torch.cat([cosines, u_w], 2), torch.cat([u_w.mT, w_w], 2)], 1)
    products.unflatten(2, (2, -1)).unflatten(1, (2, -1)).diagonal(dim1=2, dim2=4).zero_()
    return products
