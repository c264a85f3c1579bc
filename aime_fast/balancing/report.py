"""What a balancing step tells about itself."""

from dataclasses import dataclass, fields

from torch import Tensor

from aime_fast.balancing.solvers.rotation import Rotation
from aime_fast.balancing.vectors import Vector


@dataclass(frozen=True)
class BalanceReport:
    """What one balancing did: float64 tensors on the gradients' device, equal on all ranks; n tasks."""

    update: Vector
    """The balanced update, in the rows' own memory; None where no row and no direction ever had an entry."""
    finite: Tensor
    """0-d bool: False when any gradient was not finite; then the update is zero and no state has changed."""
    cosines: Tensor
    """[n, n]: cosines between the tasks' gradients; a task without gradient has zeros."""
    projections: Tensor
    """[n]: p_i, cosine between task i's gradient and the new direction d."""
    angles: Tensor
    """[n]: radians by which the gradients were turned, in [0, pi/2)."""
    norms: Tensor
    """[n]: norms of the gradients; not finite where a gradient is not."""
    active: Tensor
    """[n] bool: tasks with a gradient; the others took no part."""
    cancelled: Tensor
    """0-d bool: the unit gradients sum to zero; before the first consensus the update is then zero, see docs/rgb.md."""
    update_norm: Tensor
    """0-d: norm of the whole update, over all shards, before it is clipped."""

    @classmethod
    def of(cls, update: Vector, rotation: Rotation) -> "BalanceReport":
        """The report of a rotation that was carried out."""
        return cls(update, *(getattr(rotation, item.name) for item in fields(cls)[1:]))
