"""Rotation-based gradient balancing (OpenReview l0QAezg8HX) on Gram matrices.

All vectors of the method lie in span{g_1..g_n, d}, so their inner products, the objective over the angles and its
derivative follow from the Gram matrix of {g_1..g_n, d}. docs/balancing.md has the derivation and the edge cases.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from aime_fast.balancing.solvers.solver import CANCELLED, Problem, Solution, Solver, State

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
        active, count, angles = problem.active, problem.n_active, state["angles"]
        consensus = _consensus(problem, self.config.mu)
        p = consensus.projections

        several = consensus.exists & (count > 1)
        turning = active & several & (p <= ALIGNED)
        free = turning & (p >= -ALIGNED)
        sine = torch.where(free, 1 - p.square(), 1.0).sqrt()
        start = torch.where(turning, angles.clamp(0.0, LARGEST_ANGLE), 0.0)
        flat = turning & (~free | problem.cancelled)
        start = torch.where(flat, start.clamp(min=OPPOSED_ANGLE), start)
        found = self._search(start, turning, _pair_products(problem.cosines, p, sine, free), count)

        rotate = state["counter"] % self.config.update_interval == 0
        used = torch.where(rotate, found, 0.0)
        lift = torch.where(free, used.sin() / sine, 0.0)
        factor = self._scale(problem) / count
        weights = (used.cos() - lift * p) * problem.inverse * factor
        along = lift.sum(1, keepdim=True) * factor
        next_angles = torch.where(rotate & active & several, found, angles)
        return Solution(
            weights=torch.cat([weights, along], 1),
            state={"angles": next_angles, "counter": state["counter"] + 1},
            direction=torch.cat([consensus.shares, consensus.decay], 1),
            angles=used,
            projections=p,
        )

    def _search(self, angles: Tensor, turning: Tensor, products: Tensor, count: Tensor) -> Tensor:
        """Gradient descent on J(a) = sum_{i<j} (1 - r_i.r_j) / (N(N-1)) + lambda/(2N) sum_i (1 - cos a_i); [G, n].

        dJ/da_i = (sin a_i sum_j u_i.r_j - cos a_i sum_j w_i.r_j) / (N(N-1)) + lambda/(2N) sin a_i, over j other than i.
        """
        pairs = (count * (count - 1)).clamp(min=1)
        for _ in range(self.config.alpha_steps):
            cos, sin = angles.cos(), angles.sin()
            along_u, along_w = (products * torch.cat([cos, sin], 1).unsqueeze(1)).sum(2).chunk(2, 1)
            slope = (sin * along_u - cos * along_w) / pairs + self.config.lambd / (2 * count) * sin
            angles = torch.where(turning, (angles - self.config.lr_inner * slope).clamp(0.0, LARGEST_ANGLE), angles)
        return angles

    def _scale(self, problem: Problem) -> Tensor | float:
        """The factor on the update: 1, or the mean or root mean square of the active tasks' gradient norms, [G, 1]."""
        if self.config.rescale == "mean":
            return problem.norms.sum(1, keepdim=True) / problem.n_active
        if self.config.rescale == "rms":
            return (problem.norms.square().sum(1, keepdim=True) / problem.n_active).sqrt()
        return 1.0


class _Consensus(NamedTuple):
    """The next direction d = decay * (old d) + sum_i shares_i g_i, and what it says of the tasks."""

    decay: Tensor
    shares: Tensor
    projections: Tensor
    exists: Tensor


def _consensus(problem: Problem, mu: float) -> _Consensus:
    """Blend the old direction with the mean unit gradient; the old one stays where either has no direction."""
    column = problem.gram.select(2, -1)
    length = column[:, -1:].sqrt()
    history = length > 0
    inverse_length = torch.where(history, length, 1.0).reciprocal() * history
    old = problem.inverse * column[:, :-1] * inverse_length
    agreed = problem.mean_length > CANCELLED
    per_task = torch.where(agreed, problem.mean_length * problem.n_active, 1.0).reciprocal()
    mean = problem.cosines.sum(2) * per_task

    keep = mu * history.to(length.dtype)
    take = 1 - keep
    overlap = old.sum(1, keepdim=True) * per_task
    blend_length = (keep**2 + take**2 + 2 * keep * take * overlap).clamp(min=0.0).sqrt()
    blended = agreed & (blend_length > CANCELLED)
    scale = torch.where(blended, blend_length, 1.0).reciprocal()
    keep = torch.where(blended, keep * scale, 1.0)
    take = torch.where(blended, take * scale, 0.0)
    return _Consensus(
        # A direction that stays is left bit for bit, not normalised again.
        decay=torch.where(blended, keep * inverse_length, 1.0),
        shares=take * problem.inverse * per_task,
        projections=(keep * old + take * mean).clamp(-1.0, 1.0),
        exists=history | blended,
    )


def _pair_products(cosines: Tensor, p: Tensor, sine: Tensor, free: Tensor) -> Tensor:
    """Inner products of {u_1..u_n, w_1..w_n} between different tasks, [G, 2n, 2n]; w is zero for a task not free."""
    p_i, p_j, sine_i, sine_j = p[:, :, None], p[:, None], sine[:, :, None], sine[:, None]
    u_w = torch.where(free[:, None], (p_i - p_j * cosines) / sine_j, 0.0)
    w_w = (1 - p_i.square() - p_j.square() + p_i * p_j * cosines) / (sine_i * sine_j)
    w_w = torch.where(free[:, :, None] & free[:, None], w_w, 0.0)
    different = 1.0 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    u_w = u_w * different
    return torch.cat([torch.cat([cosines * different, u_w], 2), torch.cat([u_w.mT, w_w * different], 2)], 1)
