"""What one balancing reports."""

from dataclasses import dataclass

from torch import Tensor

from aime_fast.balancing.vectors import Vector


@dataclass(frozen=True)
class BalanceReport:
    """What one balancing did: tensors on the gradients' device, float64, equal on all ranks; n tasks, G groups.

    Norms and cosines are those of the whole gradients. Angles and projections are means over the groups, and zeros for
    solvers that do not turn gradients.
    """

    update: Vector
    """The balanced update; None where no vector and no direction ever had an entry."""
    finite: Tensor
    """0-d bool: False when any gradient was not finite; then the update is zero and no state has changed."""
    cosines: Tensor
    """[n, n]: cosines between the tasks' gradients; a task without a gradient has zeros."""
    projections: Tensor
    """[n]: p_i, cosine between task i's gradient and the new direction d."""
    angles: Tensor
    """[n]: radians by which the gradients were turned, in [0, pi/2)."""
    norms: Tensor
    """[n]: norms of the gradients; not finite where a gradient is not."""
    group_norms: Tensor
    """[G, n]: norms of the gradients within each group."""
    successive: Tensor | None
    """[n]: cosine of each gradient with that of the last step that was not skipped, from a fixed sample; 0 in the first
    step. -1 is a swing of period 2. None for a layout that does not know the parameters (`RGB`)."""
    active: Tensor
    """[n] bool: tasks with a gradient."""
    cancelled: Tensor
    """0-d bool: the unit gradients sum to zero, so that they have no common direction."""
    weights: Tensor
    """[G, n]: weights of the task gradients in the update of each group, before it is clipped."""
    update_norm: Tensor
    """0-d: norm of the whole update, over all groups and shards, before it is clipped."""
