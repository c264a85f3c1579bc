"""One balancing step: Gram matrices from the layout, weights from the solver, the combination by the layout."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aime_fast.balancing.groups import Groups, check_groups, make_groups
from aime_fast.balancing.layouts.layout import Layout
from aime_fast.balancing.report import BalanceReport
from aime_fast.balancing.solvers.registry import make_solver
from aime_fast.balancing.solvers.rotation import cancel
from aime_fast.balancing.solvers.solver import Problem, Solver, State
from aime_fast.config import BalancingConfig
from aime_fast.errors import UserError


class Decision(NamedTuple):
    """What the Gram matrices decide."""

    weights: Tensor
    """As in `Solution`, for every group, and clipped."""
    direction: Tensor | None
    """As in `Solution`, for every group."""
    state: State
    """The solver's next state; its present one after a gradient that is not finite."""
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
        UserError: an unknown solver or kind of groups, or a number of tasks that the solver cannot take.
    """

    compiled = ("_decide",)

    def __init__(
        self, config: BalancingConfig, layout: Layout, parameters: Sequence[str], tasks: Sequence[str]
    ) -> None:
        check_groups(config.groups)
        self.config = config
        self.solver: Solver = make_solver(config, len(tasks))
        self.layout = layout
        self.parameters = list(parameters)
        self._groups: Groups | None = None
        self.state: State | None = None
        """The solver's state; None before the first step."""

    @torch.no_grad()
    def balance(self, losses: Tensor | None = None, max_norm: float | None = None) -> BalanceReport:
        """Combine the layout's task gradients in place, without a host synchronisation.

        losses: float64 [n], this rank's share of the loss values, for a solver that needs them. max_norm: scale the
        update down to this norm; the report has the norm before.
        """
        tasks = len(self.layout.vectors())
        if self._groups is None:
            self._groups = self._divided()
        solver = self.solver
        grams, losses = self.layout.gram(solver.needs_direction, losses if solver.needs_losses else None)
        state = self._state_for(self._groups.balanced, tasks, grams.device)
        decision = self._decide(grams, losses, state, tasks, max_norm)
        self.layout.combine(decision.weights, decision.direction, decision.report["finite"])
        for name, value in decision.state.items():
            # In place: a captured graph reads and writes the memory that it was captured with.
            state[name].copy_(value)
        return BalanceReport(update=self.layout.update, **decision.report)

    def _divided(self) -> Groups:
        groups = make_groups(self.config.groups, self.parameters, self.layout.tasks_reaching)
        if groups.number > 1:
            self.layout.divide(groups.group_of, groups.number)
        return groups

    def _state_for(self, groups: int, tasks: int, device: torch.device) -> State:
        """The solver's state on the device; a new one at the first step."""
        if self.state is None:
            self.state = self.solver.initial_state(groups, tasks)
        self.state = {name: value.to(device) for name, value in self.state.items()}
        return self.state

    def _decide(
        self, grams: Tensor, losses: Tensor | None, state: State, tasks: int, max_norm: float | None
    ) -> Decision:
        """Everything between the two passes, on small matrices: one region for `torch.compile`."""
        finite = torch.isfinite(grams).all()
        if losses is not None:
            finite = finite & torch.isfinite(losses).all()
            losses = torch.where(finite, losses, 1.0)
        # Zeros in place of matrices that are not finite make every task inactive.
        safe = torch.where(finite, grams, 0.0)
        balanced = self._groups.balanced if self._groups else 1
        problem = Problem.of(safe[:balanced], tasks)
        solution = self.solver.solve(problem, state, losses)
        weights, direction = _with_sums(solution.weights, solution.direction, len(grams) - balanced, tasks)

        whole = weights
        if direction is not None:
            along = weights[:, tasks:]
            whole = torch.cat([weights[:, :tasks] + along * direction[:, :tasks], along * direction[:, tasks:]], 1)
        norm = (whole[:, None] @ safe @ whole[:, :, None]).sum().clamp(min=0.0).sqrt()
        clipped = weights if max_norm is None else weights * (max_norm / (norm + 1e-6)).clamp(max=1.0)

        overall = problem if len(grams) == 1 else Problem.of(safe.sum(0, keepdim=True), tasks)
        zeros = torch.zeros_like(overall.norms[0])
        report = {
            "finite": finite,
            "cosines": overall.cosines[0],
            "projections": zeros if solution.projections is None else solution.projections.mean(0),
            "angles": zeros if solution.angles is None else solution.angles.mean(0),
            "norms": grams.sum(0).diagonal()[:tasks].sqrt(),
            "active": overall.active[0],
            "cancelled": cancel(overall)[1][0, 0],
            "weights": weights[:, :tasks],
            "update_norm": norm,
        }
        kept = {name: torch.where(finite, value, state[name]) for name, value in solution.state.items()}
        return Decision(clipped, direction, kept, report)

    def state_dict(self) -> dict[str, object]:
        """What a resumed run needs: the solver's name, copies of its state, and `direction` (this rank's shards).

        Empty before the first step. The tensors of `direction` are those that the next step overwrites.
        """
        if self.state is None:
            return {}
        small = {name: value.clone() for name, value in self.state.items()}
        return {"solver": self.config.solver, "direction": self.layout.direction, **small}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over copies of the tensors of a `state_dict`. Raises UserError for the state of another solver."""
        if not state:
            self.state, self.layout.direction = None, None
            return
        small = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
        known = self.solver.initial_state(1, 1)
        if state.get("solver") != self.config.solver or small.keys() != known.keys():
            raise UserError(
                f"the balancing state is of solver {state.get('solver')!r} with {sorted(small)}, this run has "
                f"{self.config.solver!r} with {sorted(known)}; use that solver, or start another run"
            )
        self.state = small
        if self.solver.needs_direction:
            direction = state["direction"]
            assert isinstance(direction, list)
            self.layout.direction = [None if tensor is None else tensor.clone() for tensor in direction]


def _with_sums(weights: Tensor, direction: Tensor | None, more: int, tasks: int) -> tuple[Tensor, Tensor | None]:
    """The weights and `more` further groups that take the plain sum of their task gradients and have no direction."""
    if more == 0:
        return weights, direction
    sums = torch.zeros_like(weights[:1]).expand(more, -1).clone()
    sums[:, :tasks] = 1.0
    more_direction = None if direction is None else torch.cat([direction, torch.zeros_like(sums)])
    return torch.cat([weights, sums]), more_direction
