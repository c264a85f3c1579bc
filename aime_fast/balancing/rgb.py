"""Rotation-based gradient balancing for a training loop of one's own: `rgb.backward(task_losses)`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from aime_fast.balancing.balancer import Balancer
from aime_fast.balancing.layouts.layout import Layout
from aime_fast.balancing.report import BalanceReport
from aime_fast.balancing.solvers.rotation import Rotation
from aime_fast.balancing.vectors import Vector, owned
from aime_fast.config import BalancingConfig, TrainConfig
from aime_fast.config.options import updated
from aime_fast.errors import UserError

Rescale = Literal["none", "mean", "rms"]


class RGB:
    """Balances the gradients of n tasks by turning each towards a consensus direction (OpenReview l0QAezg8HX).

    A thin wrapper over `Balancer` and the rotation solver for one process, or for ranks with shards of their own.
    Every argument is an attribute of the same name and may be set at any time. Raises UserError out of range.

    Args:
        mu: decay of the consensus direction, in [0, 1].
        lambd: weight of staying near the task's own gradient.
        alpha_steps: gradient-descent steps on the angles.
        lr_inner: their size.
        update_interval: turn every so many steps; average the unit gradients on the others.
        rescale: multiply the update by the `mean` or `rms` of the gradients' norms, or `none`.
        task_num: n, checked when given.
        get_share_params: returns the parameters that `backward` balances.
        device: accepted and unused; the state lives where the gradients do.
        rep_grad: must stay False.
    """

    def __init__(
        self,
        mu: float = 0.9,
        lambd: float = 1.0,
        alpha_steps: int = 3,
        lr_inner: float = 0.2,
        update_interval: int = 1,
        *,
        rescale: Rescale = "none",
        task_num: int | None = None,
        get_share_params: Callable[[], Iterable[Tensor]] | None = None,
        device: torch.device | str | None = None,
        rep_grad: bool = False,
    ) -> None:
        self.mu, self.lambd, self.rescale = mu, lambd, rescale
        self.alpha_steps, self.lr_inner, self.update_interval = alpha_steps, lr_inner, update_interval
        self.task_num, self.get_share_params = task_num, get_share_params
        self.device, self.rep_grad = device, rep_grad
        self.report: BalanceReport | None = None
        """Report of the last balancing."""
        self._layout = Layout()
        self._balancer = Balancer(self._settings({}), self._layout, [], ["any"])
        self.state_dict = self._balancer.state_dict
        self.load_state_dict = self._balancer.load_state_dict

    @property
    def direction(self) -> Vector | None:
        """The consensus direction, laid out as the gradients are; unit length over all shards, zero at first."""
        return self._layout.direction

    def balance(
        self,
        vectors: Sequence[Sequence[Tensor | None]],
        reduce: Callable[[Tensor], Tensor] | None = None,
        max_norm: float | None = None,
        **overrides: Any,
    ) -> BalanceReport:
        """Replace n task gradients by their balanced update, in place and without a host synchronisation.

        vectors: n lists of K tensors; those at one position have one shape, None stands for zeros. They may be shards.
        No two may share memory, none may overlap itself. Afterwards `report.update[k]` is the first tensor at position
        k, overwritten; the others keep their values.
        reduce: sums a small float64 tensor over the ranks that hold the other shards and returns it; called once.
        max_norm: scale the update down to this norm over all shards. The report has the norm before.
        overrides: `mu`, `lambd`, `alpha_steps`, `lr_inner`, `update_interval` for this call.
        Raises UserError when the vectors do not fit each other, the number of tasks or the state.
        """
        self._balancer.solver = Rotation(self._settings(overrides))
        self._check(vectors)
        self._layout.given, self._layout.reduce = [list(vector) for vector in vectors], reduce
        self.report = self._balancer.balance(max_norm=max_norm)
        self._layout.given = []
        return self.report

    def backward(self, task_losses: Sequence[Tensor] | Tensor, **overrides: Any) -> np.ndarray:
        """Differentiate n losses and leave their balanced gradient in `.grad` of `get_share_params()`.

        task_losses: n 0-d tensors or one tensor [n]; a loss that does not depend on the parameters takes no part.
        `.grad` is replaced, not added to; it becomes None where no task reaches a parameter. For one process.
        overrides: as in `balance`. Returns ones [n]; `report` has the figures. Raises UserError.
        """
        if self.rep_grad:
            raise UserError("RGB: rep_grad=True is not offered, gradients are of parameters; set rep_grad = False")
        if self.get_share_params is None:
            raise UserError("RGB.backward: no parameters; set get_share_params = lambda: model.parameters()")
        losses = list(task_losses)
        parameters = [parameter for parameter in self.get_share_params() if parameter.requires_grad]
        if not losses or not parameters:
            raise UserError(f"RGB.backward: {len(losses)} losses and {len(parameters)} trainable parameters; give some")
        last = max((i for i, loss in enumerate(losses) if loss.requires_grad), default=0)
        vectors: list[Vector] = []
        for i, loss in enumerate(losses):
            if loss.requires_grad:
                vectors.append(owned(torch.autograd.grad(loss, parameters, retain_graph=i != last, allow_unused=True)))
            else:
                vectors.append([None] * len(parameters))
        report = self.balance(vectors, **overrides)
        for parameter, gradient in zip(parameters, report.update, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
        return np.ones(len(losses))

    def _settings(self, overrides: dict[str, Any]) -> BalancingConfig:
        """The attributes with this call's overrides, checked."""
        names = ("mu", "lambd", "alpha_steps", "lr_inner", "update_interval", "rescale")
        values = {name: getattr(self, name) for name in names} | overrides
        values |= {"groups": "all"}  # it knows vectors, not the parameters that they belong to
        return updated(TrainConfig(), {"balancing": values}, source="RGB").balancing

    def _check(self, vectors: Sequence[Sequence[Tensor | None]]) -> None:
        """Whether the vectors fit each other, the number of tasks and the state."""
        n, lengths = len(vectors), [len(vector) for vector in vectors]
        if n == 0 or self.task_num not in (None, n):
            raise UserError(f"RGB: {n} task gradients where task_num is {self.task_num}; give one vector a task")
        if len(set(lengths)) > 1:
            raise UserError(f"RGB: vectors of {lengths} tensors; mark a missing gradient with None")
        known, state = self.direction, self._balancer.state
        if known is None or state is None:
            return
        pairs = [pair for vector in vectors for pair in zip(vector, known, strict=False)]
        shapes = all(a is None or b is None or a.shape == b.shape for a, b in pairs)
        if state["angles"].shape[1] != n or len(known) != lengths[0] or not shapes:
            raise UserError(
                f"RGB: the state has {state['angles'].shape[1]} tasks of {len(known)} tensors, these are {n} tasks of "
                f"{lengths[0]}{'' if shapes else ' with other shapes'}; use one RGB object for each set of tasks, "
                "parameters and shards"
            )
