"""The Gram form of RGB: everything between the two passes over the long vectors, on (n+1)^2 numbers.

All vectors of the method lie in span{g_1..g_n, d}, so their inner products, the objective over the angles and its
derivative follow from the Gram matrix of {g_1..g_n, d}. `direct.py` is the same mathematics on the vectors themselves.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

NEGLIGIBLE = torch.finfo(torch.float32).tiny
"""A gradient of at most this norm counts as zero: the inverse of a smaller norm does not fit into float32."""
CANCELLED = 1e-6
"""Unit vectors whose mean is at most this long cancel: their mean has no direction beyond float32's rounding."""
ALIGNED = 0.999
"""Above this cosine with d a task is aligned with it; below its negative the task is opposed to it."""
OPPOSED_ANGLE = math.acos(ALIGNED)
"""Angle from which the search starts for an opposed task, and for tasks that cancel: there angle 0 is a saddle."""
LARGEST_ANGLE = math.pi / 2 - 1e-6
MOST_STEPS = 10
"""Bound of an adaptive number of descent steps."""

Rescale = Literal["none", "mean", "rms"]


class Rotation(NamedTuple):
    """What the Gram matrix decides; float64 tensors on its device."""

    coefficients: Tensor
    """[2, n+1]: weights of (g_1..g_n, new d) in the update, and of (g_1..g_n, old d) in the new d."""
    state_angles: Tensor
    """[n]: the angles to start from at the next step."""
    angles: Tensor
    """[n]: the angles used now, in [0, pi/2); 0 for a task that is not turned."""
    norms: Tensor
    """[n]: |g_i|; not finite where a gradient is not."""
    cosines: Tensor
    """[n, n]: u_i . u_j; 0 beside a task without gradient."""
    projections: Tensor
    """[n]: p_i = u_i . d, with the new d; 0 for a task without gradient."""
    active: Tensor
    """[n] bool: tasks with a gradient."""
    finite: Tensor
    """0-d bool: every gradient is finite."""
    cancelled: Tensor
    """0-d bool: the unit gradients sum to zero, so that no consensus can be read from them."""
    update_norm: Tensor
    """0-d: norm of the update."""


class Consensus(NamedTuple):
    """The new direction, d = decay * (old d) + sum_i shares_i g_i."""

    decay: Tensor
    shares: Tensor
    projections: Tensor
    exists: Tensor
    cancelled: Tensor


def solve_rotation(
    gram: Tensor,
    angles: Tensor,
    rotate: Tensor,
    *,
    mu: float,
    lambd: float,
    steps: int | Tensor,
    lr: float,
    rescale: Rescale = "none",
) -> Rotation:
    """Decide the balanced update of n tasks from the Gram matrix of {g_1..g_n, d}, without a host synchronisation.

    gram: float64 [n+1, n+1], summed over all shards; d is a unit vector, or zero before the first consensus.
    angles: float64 [n], those of the previous step. rotate: 0-d bool, False averages the unit gradients.
    steps: gradient-descent steps on the angles; a 0-d integer tensor counts up to `MOST_STEPS`.
    Source: OpenReview l0QAezg8HX; the rules of the edge cases are those of docs/rgb.md.
    """
    n = angles.shape[0]
    finite = torch.isfinite(gram).all()
    # Zeros in place of a poisoned matrix make every task inactive: zero update, d and angles as they were.
    safe = torch.where(finite, gram, 0.0)
    norms = safe.diagonal()[:n].sqrt()
    active = norms > NEGLIGIBLE
    inverse = torch.where(active, norms, 1.0).reciprocal() * active
    count = active.sum().clamp(min=1).to(gram.dtype)
    cosines = (inverse[:, None] * safe[:n, :n] * inverse).clamp(-1.0, 1.0)
    consensus = _consensus(safe, cosines, inverse, count, mu)
    p = consensus.projections

    turning = active & consensus.exists & (count > 1) & (p <= ALIGNED)
    free = turning & (p >= -ALIGNED)
    sine = torch.where(free, 1 - p.square(), 1.0).sqrt()
    start = torch.where(turning, angles.clamp(0.0, LARGEST_ANGLE), 0.0)
    flat = turning & (~free | consensus.cancelled)
    start = torch.where(flat, start.clamp(min=OPPOSED_ANGLE), start)
    blocks = _pair_products(cosines, p, sine, free)
    found = _search(start, turning, blocks, count, lambd, steps, lr)

    used = torch.where(rotate, found, 0.0)
    lift = torch.where(free, used.sin() / sine, 0.0)
    factor = _rescaling(norms, count, rescale) / count
    weights = (used.cos() - lift * p) * inverse * factor
    along = lift.sum() * factor
    whole = torch.cat([weights + along * consensus.shares, (along * consensus.decay)[None]])
    searched = rotate & active & consensus.exists & (count > 1)
    return Rotation(
        coefficients=torch.stack(
            [torch.cat([weights, along[None]]), torch.cat([consensus.shares, consensus.decay[None]])]
        ),
        state_angles=torch.where(searched, found, angles),
        angles=used,
        norms=gram.diagonal()[:n].sqrt(),
        cosines=cosines,
        projections=p,
        active=active,
        finite=finite,
        cancelled=consensus.cancelled,
        update_norm=(whole @ safe @ whole).clamp(min=0.0).sqrt(),
    )


def _consensus(gram: Tensor, cosines: Tensor, inverse: Tensor, count: Tensor, mu: float) -> Consensus:
    """Blend the old direction with the mean unit gradient; the old one stays where either has no direction."""
    n = cosines.shape[0]
    length = gram[n, n].sqrt()
    history = length > 0
    inverse_length = torch.where(history, length, 1.0).reciprocal() * history
    old = inverse * gram[:n, n] * inverse_length
    mean_length = cosines.sum().clamp(min=0.0).sqrt() / count
    agreed = mean_length > CANCELLED
    per_task = torch.where(agreed, mean_length * count, 1.0).reciprocal()
    mean = cosines.sum(1) * per_task

    keep = mu * history.to(gram.dtype)
    take = 1 - keep
    blend_length = (keep**2 + take**2 + 2 * keep * take * old.sum() * per_task).clamp(min=0.0).sqrt()
    blended = agreed & (blend_length > CANCELLED)
    scale = torch.where(blended, blend_length, 1.0).reciprocal()
    keep = torch.where(blended, keep * scale, 1.0)
    take = torch.where(blended, take * scale, 0.0)
    return Consensus(
        # A direction that stays is left bit for bit, not normalised again.
        decay=torch.where(blended, keep * inverse_length, 1.0),
        shares=take * inverse * per_task,
        projections=(keep * old + take * mean).clamp(-1.0, 1.0),
        exists=history | blended,
        cancelled=(inverse > 0).any() & ~agreed,
    )


def _pair_products(cosines: Tensor, p: Tensor, sine: Tensor, free: Tensor) -> Tensor:
    """Inner products of {u_1..u_n, w_1..w_n} between different tasks, [2n, 2n]; w is zero for a task not free."""
    both = free[:, None] & free
    u_w = torch.where(free, (p[:, None] - p * cosines) / sine, 0.0)
    w_w = (1 - p[:, None].square() - p.square() + p[:, None] * p * cosines) / (sine[:, None] * sine)
    w_w = torch.where(both, w_w, 0.0)
    different = 1.0 - torch.eye(len(p), dtype=p.dtype, device=p.device)
    rows = [torch.cat([cosines * different, u_w * different], 1), torch.cat([u_w.t() * different, w_w * different], 1)]
    return torch.cat(rows, 0)


def _search(
    angles: Tensor, turning: Tensor, products: Tensor, count: Tensor, lambd: float, steps: int | Tensor, lr: float
) -> Tensor:
    """Gradient descent on J(a) = sum_{i<j} (1 - r_i.r_j) / (n(n-1)) + lambda/(2n) sum_i (1 - cos a_i); [n].

    dJ/da_i = (sin a_i  sum_j u_i.r_j - cos a_i  sum_j w_i.r_j) / (n(n-1)) + lambda/(2n) sin a_i, over j other than i.
    """
    pairs = (count * (count - 1)).clamp(min=1)
    n = angles.shape[0]
    for step in range(MOST_STEPS if isinstance(steps, Tensor) else steps):
        cos, sin = angles.cos(), angles.sin()
        along = products @ torch.cat([cos, sin])
        slope = (sin * along[:n] - cos * along[n:]) / pairs + lambd / (2 * count) * sin
        moving = turning & (step < steps) if isinstance(steps, Tensor) else turning
        angles = torch.where(moving, (angles - lr * slope).clamp(0.0, LARGEST_ANGLE), angles)
    return angles


def _rescaling(norms: Tensor, count: Tensor, rescale: Rescale) -> Tensor:
    """The factor on the update: 1, or the mean or root mean square of the active tasks' gradient norms."""
    if rescale == "mean":
        return norms.sum() / count
    if rescale == "rms":
        return (norms.square().sum() / count).sqrt()
    return torch.ones_like(norms[0])
