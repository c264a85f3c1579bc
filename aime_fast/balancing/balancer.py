"""One balancing step: Gram matrices from the layout, weights from the solver, the combination by the layout."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aime_fast.balancing.groups import Groups, make_groups
from aime_fast.balancing.layouts.layout import Layout
from aime_fast.balancing.layouts.sample import SAMPLE, Sample, cosines
from aime_fast.balancing.report import BalanceReport
from aime_fast.balancing.solvers.registry import make_solver
from aime_fast.balancing.solvers.solver import Problem, Solver, State
from aime_fast.balancing.vectors import Vector
from aime_fast.config import BalancingConfig
from aime_fast.errors import UserError


class Decision(NamedTuple):
    """What the Gram matrices decide: the first three as in `Solution`, with every group and clipped.

    Where `finite` of the report is false the state must not be kept.
    """

    weights: Tensor
    direction: Tensor | None
    state: State
    report: dict[str, Tensor]
    """The tensors of `BalanceReport`."""


class Balancer:
    """Replaces a layout's task gradients by one balanced update.

    Args:
        config: solver, groups and the solver's numbers.
        layout: where the task gradients are.
        parameters: names of the trainable parameters in the layout's order.
        tasks: names of the tasks.

    Raises:
        UserError: an unknown solver, or a number of tasks that the solver cannot take.
    """

    compiled = ("_decide_and_combine",)
    compiled_gradients = False

    def __init__(
        self, config: BalancingConfig, layout: Layout, parameters: Sequence[str], tasks: Sequence[str]
    ) -> None:
        self.config = config
        self.solver: Solver = make_solver(config, len(tasks))
        self.layout = layout
        self.parameters = list(parameters)
        self.state: State | None = None
        """The solver's state; None before the first step."""
        self.sample: Sample | None = None
        """The task gradients' sample; None before the first step, and for a layout without one."""
        self._groups: Groups | None = None

    @torch.no_grad()
    def balance(self, losses: Tensor | None = None, max_norm: float | None = None) -> BalanceReport:
        """Combine the layout's task gradients in place, without a host synchronisation.

        losses: float64 [n], this rank's share of the loss values, for a solver that needs them. max_norm: scale the
        update down to this norm; the report has the norm before.
        """
        tasks, solver = len(self.layout.vectors()), self.solver
        if self._groups is None:
            self._groups = make_groups(self.config.groups, self.parameters, self.layout.tasks_reaching)
            if self._groups.number > 1:
                self.layout.divide(self._groups.group_of, self._groups.number)
        if self.sample is None:
            self.sample = self.layout.new_sample(tasks)
        grams, losses, successive = self.layout.gram(
            solver.needs_direction, losses if solver.needs_losses else None, self.sample
        )
        state = solver.initial_state(self._groups.balanced, tasks) if self.state is None else self.state
        self.state = {name: value.to(grams.device) for name, value in state.items()}
        targets = self.layout.targets(solver.needs_direction)
        following, report = self._decide_and_combine(grams, losses, self.state, targets, max_norm)
        for name, value in following.items():
            # In place: a captured graph reads and writes the memory that it was captured with. Not within the region:
            # with `out=` of an input Inductor 2.13 computes other angles.
            self.state[name].copy_(value)
        if self.sample is None or successive is None:
            return BalanceReport(update=self.layout.update, successive=None, **report)
        self.sample.keep(report["finite"])
        return BalanceReport(update=self.layout.update, successive=cosines(successive), **report)

    def _decide_and_combine(
        self,
        grams: Tensor,
        losses: Tensor | None,
        state: State,
        targets: list[list[Vector]],
        max_norm: float | None,
    ) -> tuple[State, dict[str, Tensor]]:
        """What follows the Gram matrices: one region for `torch.compile`.

        Returns the solver's next state, and the tensors of `BalanceReport`.
        """
        tasks = grams.shape[1] - self.solver.needs_direction
        decision = self._decide(grams, losses, state, tasks, max_norm)
        finite = decision.report["finite"]
        self.layout.combine(targets, decision.weights, decision.direction, finite)
        following = {name: torch.where(finite, value, state[name]) for name, value in decision.state.items()}
        return following, decision.report

    def _decide(
        self, grams: Tensor, losses: Tensor | None, state: State, tasks: int, max_norm: float | None
    ) -> Decision:
        """Everything between the two passes, on small matrices."""
        finite = _all_finite(grams)
        if losses is not None:
            finite = finite & _all_finite(losses)
        # Zeros in place of matrices that are not finite make every task inactive.
        safe = grams.masked_fill(~finite, 0.0)
        balanced = self._groups.balanced if self._groups else 1
        problem = Problem.of(safe[:balanced], tasks)
        solution = self.solver.solve(problem, state, losses)
        weights, direction = _with_sums(solution.weights, solution.direction, len(grams) - balanced, tasks)

        own = whole = weights
        if direction is not None:
            own = weights[:, :tasks]
            whole = weights[:, tasks:] * direction
            whole[:, :tasks] += own
        norm = ((safe @ whole.unsqueeze(2)).squeeze(2) * whole).sum().clamp(min=0.0).sqrt()
        clipped = weights if max_norm is None else weights * (max_norm / (norm + 1e-6)).clamp(max=1.0)

        group_norms = grams.diagonal(dim1=1, dim2=2)[:, :tasks].sqrt()
        overall = problem if len(grams) == 1 else Problem.of(safe.sum(0, keepdim=True), tasks)
        report = {
            "finite": finite,
            "cosines": overall.cosines[0],
            "projections": _mean(solution.projections, overall.norms),
            "angles": _mean(solution.angles, overall.norms),
            "norms": group_norms[0] if len(grams) == 1 else grams.sum(0).diagonal()[:tasks].sqrt(),
            "group_norms": group_norms,
            "active": overall.active[0],
            "cancelled": overall.cancelled[0, 0],
            "weights": own,
            "update_norm": norm,
        }
        return Decision(clipped, direction, solution.state, report)

    def state_dict(self) -> dict[str, object]:
        """The solver's name, copies of its state, the sample and `direction`; empty before the first step.

        Sample and `direction` are of this rank's shards. The tensors of `direction` are those that the next step
        overwrites.
        """
        if self.state is None:
            return {}
        small = {name: value.clone() for name, value in self.state.items()}
        if self.sample is not None:
            small |= self.sample.state_dict()
        return {"solver": self.config.solver, "direction": self.layout.direction, **small}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over copies of the tensors of a `state_dict`. Raises UserError for the state of another solver."""
        small = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
        sample = {name: small.pop(name) for name in SAMPLE if name in small}
        known = self.solver.initial_state(1, 1)
        if state and (state.get("solver") != self.config.solver or small.keys() != known.keys()):
            raise UserError(
                f"the balancing state is of solver {state.get('solver')!r} with {sorted(small)}, this run has "
                f"{self.config.solver!r} with {sorted(known)}; use that solver, or start another run"
            )
        self.state = small if state else None
        self.sample = self.layout.new_sample(len(sample["sample"])) if sample else None
        if self.sample is not None:
            self.sample.load_state_dict(sample)
        direction = state.get("direction") if self.solver.needs_direction else None
        cloned = [None if t is None else t.clone() for t in direction] if isinstance(direction, list) else None
        self.layout.direction = cloned


def _all_finite(x: Tensor) -> Tensor:
    """0-d bool; NaN compares as false."""
    return torch.linalg.vector_norm(x, math.inf) < math.inf


def _mean(values: Tensor | None, norms: Tensor) -> Tensor:
    """The mean over groups of values [G, n]; zeros for None."""
    if values is None:
        return torch.zeros_like(norms[0])
    return values[0] if len(values) == 1 else values.mean(0)


def _with_sums(weights: Tensor, direction: Tensor | None, more: int, tasks: int) -> tuple[Tensor, Tensor | None]:
    """The weights and `more` further groups that take the plain sum of their task gradients and have no direction."""
    if more == 0:
        return weights, direction
    nothing = torch.zeros_like(weights[:1]).expand(more, -1)
    ones = torch.cat([torch.ones_like(nothing[:, :tasks]), nothing[:, tasks:]], 1)
    return torch.cat([weights, ones]), None if direction is None else torch.cat([direction, nothing])
