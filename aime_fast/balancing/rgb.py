"""Rotation-based gradient balancing (RGB): its state, and the two passes over the gradients."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aime_fast.balancing.report import BalanceReport
from aime_fast.balancing.solvers.rotation import MOST_STEPS, Rescale, Rotation, solve_rotation
from aime_fast.balancing.vectors import Vector, owned
from aime_fast.config import BalancingConfig
from aime_fast.errors import UserError
from aime_kernels import rgb_combine, rgb_gram


class RGB:
    """Balances the gradients of n tasks by turning each towards a consensus direction (OpenReview l0QAezg8HX).

    `balance` works on gradients that an engine has laid out; `backward` does a whole step on one process. The state
    (d, angles, counter, previous losses) is made at the first call, on the gradients' device.
    """

    compiled = ("_gram", "_rotation", "_combine")

    def __init__(
        self,
        mu: float = 0.9,
        lambd: float = 1.0,
        alpha_steps: int = 3,
        lr_inner: float = 0.2,
        update_interval: int = 1,
        *,
        adaptive_steps: bool = False,
        rescale: Rescale = "none",
        task_num: int | None = None,
        get_share_params: Callable[[], Iterable[Tensor]] | None = None,
        device: torch.device | str | None = None,
        rep_grad: bool = False,
    ) -> None:
        """Every argument is an attribute of the same name and may be set at any time.

        mu: decay of d, in [0, 1]. lambd: weight of staying near the task's own gradient. alpha_steps: descent steps
        on the angles. lr_inner: their size. update_interval: turn every so many steps, average on the others.
        adaptive_steps: choose 1 to 10 descent steps by how unevenly the losses change. rescale: multiply the update
        by the `mean` or `rms` of the gradients' norms. task_num: n, checked when given. get_share_params: the
        parameters that `backward` balances. device: accepted and unused, the state lives where the gradients do.
        rep_grad: must stay False. Raises UserError for a value out of range.
        """
        self.mu = mu
        self.lambd = lambd
        self.alpha_steps = alpha_steps
        self.lr_inner = lr_inner
        self.update_interval = update_interval
        self.adaptive_steps = adaptive_steps
        self.rescale = rescale
        self.task_num = task_num
        self.get_share_params = get_share_params
        self.device = device
        self.rep_grad = rep_grad
        self.report: BalanceReport | None = None
        """Report of the last balancing."""
        self.direction: Vector | None = None
        """d, laid out as the rows are: unit length over all shards, zero before the first consensus."""
        self._angles: Tensor | None = None
        self._counter: Tensor | None = None
        self._losses: Tensor | None = None
        self._settings({})

    @classmethod
    def from_config(cls, config: BalancingConfig) -> "RGB":
        """An RGB with the configured numbers; `config.mode` concerns the engine."""
        return cls(
            config.mu,
            config.lambd,
            config.alpha_steps,
            config.lr_inner,
            config.update_interval,
            rescale=config.rescale,
        )

    @torch.no_grad()
    def balance(
        self,
        rows: Sequence[Sequence[Tensor | None]],
        reduce: Callable[[Tensor], Tensor] | None = None,
        losses: Tensor | Sequence[Tensor] | None = None,
        max_norm: float | None = None,
        **overrides: Any,
    ) -> BalanceReport:
        """Replace n task gradients by their balanced update, in place and without a host synchronisation.

        rows: n lists of K tensors, `rows[i][k]` of one shape for all i; None stands for zeros. They may be shards of
        longer gradients. No two may share memory, none may overlap itself. Afterwards `report.update[k]` is the first
        present tensor at position k, overwritten; the other tensors keep their values.
        reduce: sums a small float64 tensor over the ranks that hold the other shards and returns it; called once.
        losses: n local loss values, needed for `adaptive_steps` only; summed over ranks by the same reduction.
        max_norm: scale the update down to this norm over all shards, which costs nothing here; the report has the norm
        before.
        overrides: `mu`, `lambd`, `alpha_steps`, `lr_inner`, `update_interval` for this call.
        Raises UserError when the rows do not fit each other, the number of tasks or the state.
        """
        settings = self._settings(overrides)
        direction = self._prepare(rows)
        assert self._angles is not None and self._counter is not None and self._losses is not None
        n = len(rows)
        sums = self._gram(rows, direction)
        if self.adaptive_steps:
            if losses is None:
                raise UserError("RGB.balance: adaptive_steps needs `losses`; pass them or switch adaptive_steps off")
            values = torch.stack([torch.as_tensor(loss).detach() for loss in losses]).to(sums)
            sums = torch.cat([sums, torch.nn.functional.pad(values, (0, 1))[None]])
        if reduce is not None:
            sums = reduce(sums)
        steps = self._adapted(sums[n + 1, :n], settings) if self.adaptive_steps else settings["alpha_steps"]
        rotate = self._counter % settings["update_interval"] == 0
        rotation = self._rotation(sums[: n + 1], self._angles, rotate, settings, steps)
        update = self._targets(rows, direction)
        coefficients = rotation.coefficients
        if max_norm is not None:
            of_update, of_direction = coefficients.unbind()
            clip = (max_norm / (rotation.update_norm + 1e-6)).clamp(max=1.0)
            coefficients = torch.stack([of_update * clip, of_direction])
        self._combine(rows, direction, update, coefficients, rotation.finite)
        # In place: a captured graph reads and writes the memory that it was captured with.
        self._angles.copy_(rotation.state_angles)
        self._counter.add_(rotation.finite)
        if self.adaptive_steps:
            self._losses.copy_(torch.where(rotation.finite, sums[n + 1, :n], self._losses))
        self.report = BalanceReport.of(update, rotation)
        return self.report

    def backward(self, task_losses: Sequence[Tensor] | Tensor, **overrides: Any) -> np.ndarray:
        """Differentiate n losses and leave their balanced gradient in `.grad` of `get_share_params()`.

        task_losses: n 0-d tensors or one tensor [n]; a loss that does not depend on the parameters takes no part.
        `.grad` is replaced, not added to; it becomes None where no task reaches a parameter. For one process.
        overrides: as in `balance`. Returns ones [n]; `report` tells the rest. Raises UserError.
        """
        if self.rep_grad:
            raise UserError("RGB: rep_grad=True is not offered, gradients are of parameters; set rep_grad = False")
        if self.get_share_params is None:
            raise UserError("RGB.backward: no parameters; set get_share_params = lambda: model.parameters()")
        losses = list(task_losses)
        parameters = [parameter for parameter in self.get_share_params() if parameter.requires_grad]
        if not losses or not parameters:
            raise UserError(f"RGB.backward: {len(losses)} losses and {len(parameters)} trainable parameters; give some")
        reaching = [i for i, loss in enumerate(losses) if loss.requires_grad]
        rows: list[Vector] = []
        for i, loss in enumerate(losses):
            if i in reaching:
                keep = i != reaching[-1]
                rows.append(owned(torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)))
            else:
                rows.append([None] * len(parameters))
        report = self.balance(rows, losses=losses, **overrides)
        for parameter, gradient in zip(parameters, report.update, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
        return np.ones(len(losses))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: d (this rank's shards), angles, counter, previous losses; empty at first.

        The tensors of d are the ones that the next call overwrites, the others are copies.
        """
        if self._angles is None or self._counter is None or self._losses is None:
            return {}
        return {
            "direction": self.direction,
            "angles": self._angles.clone(),
            "counter": self._counter.clone(),
            "losses": self._losses.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over copies of the tensors of a `state_dict`; the next call moves them to its gradients' device."""
        expected = {"direction", "angles", "counter", "losses"}
        if state and set(state) != expected:
            raise UserError(f"RGB state has {sorted(state)} instead of {sorted(expected)}; is it of another program?")
        self.direction = _copies(state["direction"]) if state else None
        self._angles, self._counter, self._losses = (
            (state[name].clone() for name in ("angles", "counter", "losses")) if state else (None, None, None)
        )

    @staticmethod
    def _gram(rows: Sequence[Sequence[Tensor | None]], direction: Vector) -> Tensor:
        """Inner products of the rows and d."""
        return rgb_gram([*rows, direction])

    def _rotation(
        self, gram: Tensor, angles: Tensor, rotate: Tensor, settings: dict[str, Any], steps: int | Tensor
    ) -> Rotation:
        """What these settings make of the inner products."""
        return solve_rotation(
            gram,
            angles,
            rotate,
            mu=settings["mu"],
            lambd=settings["lambd"],
            steps=steps,
            lr=settings["lr_inner"],
            rescale=self.rescale,
        )

    @staticmethod
    def _combine(
        rows: Sequence[Sequence[Tensor | None]],
        direction: Vector,
        update: Vector,
        coefficients: Tensor,
        finite: Tensor,
    ) -> None:
        """Write d and the update."""
        rgb_combine(rows, direction, update, coefficients, finite)

    def _settings(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """The five numbers with this call's overrides, checked."""
        settings = {
            "mu": self.mu,
            "lambd": self.lambd,
            "alpha_steps": self.alpha_steps,
            "lr_inner": self.lr_inner,
            "update_interval": self.update_interval,
        }
        unknown = sorted(set(overrides) - set(settings))
        if unknown:
            raise UserError(f"RGB: unknown option {unknown[0]!r}; use one of {', '.join(settings)}")
        settings.update(overrides)
        positive = all(0 <= settings[name] < math.inf for name in ("lambd", "alpha_steps", "lr_inner"))
        if not (0 <= settings["mu"] <= 1 and positive and settings["update_interval"] >= 1):
            raise UserError(
                f"RGB: {settings}: mu must lie in [0, 1], lambd, alpha_steps and lr_inner be finite and at least 0, "
                "update_interval at least 1"
            )
        if self.rescale not in ("none", "mean", "rms"):
            raise UserError(f"RGB: rescale is {self.rescale!r}; use 'none', 'mean' or 'rms'")
        return settings

    def _prepare(self, rows: Sequence[Sequence[Tensor | None]]) -> Vector:
        """Check the rows, make or move the state, and return d with an entry wherever a row has one."""
        n = len(rows)
        if n == 0 or self.task_num not in (None, n):
            raise UserError(f"RGB: {n} task gradients where task_num is {self.task_num}; give one row a task")
        if len({len(row) for row in rows}) > 1:
            raise UserError(f"RGB: rows of {[len(row) for row in rows]} tensors; mark a missing gradient with None")
        size = len(rows[0])
        if self._angles is None or self.direction is None:
            self.direction = [None] * size
            self._angles = torch.zeros(n, dtype=torch.float64)
            self._counter = torch.zeros((), dtype=torch.int64)
            self._losses = torch.full((n,), torch.nan, dtype=torch.float64)
        if len(self._angles) != n or len(self.direction) != size:
            raise UserError(
                f"RGB: {n} tasks of {size} tensors, but the state is of {len(self._angles)} tasks of "
                f"{len(self.direction)}; use one RGB object for each set of tasks and parameters"
            )
        self._move(next((tensor.device for row in rows for tensor in row if tensor is not None), self._angles.device))
        for k, tensors in enumerate(zip(*rows, strict=True)):
            present = next((tensor for tensor in tensors if tensor is not None), None)
            known = self.direction[k]
            if present is None:
                continue
            if known is None:
                wide = torch.promote_types(present.dtype, torch.float32)
                self.direction[k] = torch.zeros_like(present, dtype=wide)
            elif known.shape != present.shape:
                raise UserError(
                    f"RGB: gradient {k} has shape {tuple(present.shape)}, its direction {tuple(known.shape)}; "
                    "the state belongs to another model or another sharding"
                )
        return self.direction

    def _move(self, device: torch.device) -> None:
        """Bring the state to a device; nothing happens where it is there already."""
        assert self._angles is not None and self._counter is not None and self._losses is not None
        assert self.direction is not None
        self._angles, self._counter = self._angles.to(device), self._counter.to(device)
        self._losses = self._losses.to(device)
        self.direction = [None if tensor is None else tensor.to(device) for tensor in self.direction]

    @staticmethod
    def _targets(rows: Sequence[Sequence[Tensor | None]], direction: Vector) -> Vector:
        """Where the update goes: at each position the first row's tensor that is there, else room like d's."""
        update: Vector = []
        for known, tensors in zip(direction, zip(*rows, strict=True), strict=True):
            present = next((tensor for tensor in tensors if tensor is not None), None)
            # d may reach a parameter that no task touches in this step, and the turned gradients with it.
            update.append(torch.empty_like(known) if present is None and known is not None else present)
        return update

    def _adapted(self, losses: Tensor, settings: dict[str, Any]) -> Tensor:
        """Descent steps int(1 + 9 s/(s+1)) in [1, 10], s the tasks' standard deviation of the relative loss change."""
        assert self._losses is not None
        change = (losses - self._losses) / self._losses.abs()
        spread = change.std() if len(losses) > 1 else change[0] * torch.nan
        chosen = (1 + 9 * spread / (spread + 1)).clamp(1, MOST_STEPS)
        known = torch.isfinite(spread)
        return torch.where(known, chosen, float(settings["alpha_steps"])).to(torch.int64)


def _copies(direction: Vector) -> Vector:
    """A copy of every tensor of a list."""
    return [None if tensor is None else tensor.clone() for tensor in direction]
