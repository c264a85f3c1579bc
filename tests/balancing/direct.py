"""The direct form of RGB on the long vectors themselves: slow, and the oracle of the Gram form."""

import torch
from torch import Tensor

from aime_fast.balancing.solvers.rotation import ALIGNED, LARGEST_ANGLE, OPPOSED_ANGLE
from aime_fast.balancing.solvers.solver import CANCELLED, NEGLIGIBLE


def direct_balance(
    rows: Tensor,
    direction: Tensor,
    angles: Tensor,
    rotate: bool = True,
    *,
    mu: float = 0.9,
    lambd: float = 1.0,
    steps: int = 3,
    lr: float = 0.2,
    rescale: str = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """Balance gradients `rows` [n, P] around `direction` [P] (zero: none yet) from `angles` [n].

    Returns the update [P], the next direction [P] and the next angles [n], as `RGB.balance` defines them. Reads
    numbers on the host and differentiates through [n, P] vectors: for tests and timing only.
    Source: OpenReview l0QAezg8HX.
    """
    norms = rows.norm(dim=1)
    active = norms > NEGLIGIBLE
    if not rows.isfinite().all() or not active.any():
        return torch.zeros_like(direction), direction, angles
    u = rows[active] / norms[active, None]
    n, size = u.shape

    mean = u.mean(0)
    cancelled = mean.norm() <= CANCELLED
    if not cancelled:
        mean = mean / mean.norm()
        blend = mu * direction + (1 - mu) * mean if direction.norm() > 0 else mean
        direction = blend / blend.norm() if blend.norm() > CANCELLED else direction

    r = u
    if rotate and n > 1 and direction.norm() > 0:
        p = u @ (direction / direction.norm())
        # An opposed task has no plane to turn in; it turns towards an axis of its own outside the space.
        u, d = torch.cat([u, u.new_zeros(n, n)], 1), torch.cat([direction, direction.new_zeros(n)])
        w = d - p[:, None] * u
        w = torch.where((p < -ALIGNED)[:, None], torch.eye(n, size + n, dtype=u.dtype).roll(size, 1), w)
        w = torch.where((p > ALIGNED)[:, None], 0.0, w / w.norm(dim=1, keepdim=True).clamp(min=1e-30))
        a = angles[active].clamp(0.0, LARGEST_ANGLE)
        a = torch.where((p < -ALIGNED) | cancelled, a.clamp(min=OPPOSED_ANGLE), a)
        a = torch.where(p > ALIGNED, 0.0, a)
        for _ in range(steps):
            a.requires_grad_()
            r = a.cos()[:, None] * u + a.sin()[:, None] * w
            disagreement = (1 - r @ r.t()).triu(1).sum()
            objective = disagreement / (n * (n - 1)) + lambd / (4 * n) * (r - u).square().sum()
            (slope,) = torch.autograd.grad(objective, a)
            a = torch.where(p > ALIGNED, 0.0, (a.detach() - lr * slope).clamp(0.0, LARGEST_ANGLE))
        r = (a.cos()[:, None] * u + a.sin()[:, None] * w)[:, :size]
        angles = angles.masked_scatter(active, a)
    scale = {"none": 1.0, "mean": norms[active].mean(), "rms": norms[active].square().mean().sqrt()}[rescale]
    return r.mean(0) * scale, direction, angles
