"""The training step for any engine: a backward pass per task, balance, clip, step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from aime_fast.balancing.balancer import Balancer
from aime_fast.balancing.layouts.cut import Cut
from aime_fast.balancing.layouts.flat import FlatLayout
from aime_fast.balancing.layouts.partitions import WholePartition, stored
from aime_fast.balancing.report import BalanceReport
from aime_fast.config import OptimConfig, TrainConfig
from aime_fast.errors import UserError
from aime_fast.model.draws import Draws
from aime_fast.model.frame_memory import SingleFrames
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.recalled import Recalled
from aime_fast.profiling.phases import phase
from aime_fast.tasks.task import belongs
from aime_fast.training.engines.card import check_card, use_precision

M = TypeVar("M", bound=nn.Module, covariant=True)
ADAM_EPSILON = 1e-12
"""A balanced gradient has at most unit norm over all parameters, so its entries lie far below AdamW's usual 1e-8."""


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did; every tensor stays on the device."""

    balance: BalanceReport
    """The balancer's own report."""
    grad_norm: Tensor
    """0-d float32: norm of the balanced update before clipping."""
    finite: Tensor
    """0-d bool: False where a gradient was not finite on any rank and the step was skipped on all."""


class Engine(Generic[M]):
    """A module, its optimiser and the layout of its task gradients.

    One optimiser step is: for each micro-batch `engine(...)` and `engine.backward(task_losses)`, then
    `engine.balance(balancer)` and `engine.step(report)`. No call waits for the device.
    """

    def __init__(
        self,
        module: M,
        optimizer: torch.optim.Optimizer,
        layout: FlatLayout,
        config: TrainConfig,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        bf16: bool = False,
    ) -> None:
        self.module, self.optimizer, self.layout = module, optimizer, layout
        self.device, self.rank, self.world_size = device, rank, world_size
        self.precision = use_precision(device, config.optim.tf32, bf16)
        """What products are computed in, for the user."""
        self.accumulation = config.optim.accumulation
        self.micro_batch = micro_batch_size(config, world_size)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        self._clip = config.optim.clip
        self._parameters = trainable(module)
        self._trained: dict[frozenset[str], list[int]] = {}
        self._micro_step = 0
        # Makes sums over ranks and micro-batches means; applied inside the backward pass.
        self._share = torch.tensor(1.0 / (self.accumulation * world_size), device=device)
        self._losses: list[list[Tensor]] = []

    def __call__(
        self,
        observations: Tensor,
        actions: Tensor,
        draws: Draws,
        recalled: Recalled | None = None,
        singles: SingleFrames | None = None,
    ) -> SequenceOutputs:
        """The module's outputs for this rank's micro-batch."""
        self._fetch()
        # Parameters and their gradients stay float32: autocast gives bfloat16 copies to operators that accept those.
        with self._autocast:
            return self.module(observations, actions, draws, recalled, singles)

    def _fetch(self) -> None:
        """Make cut parameters whole until `_release`; any number of times a step."""

    def _release(self) -> None:
        """Keep only this rank's part of cut parameters."""

    def backward(
        self,
        task_losses: Sequence[Tensor],
        names: Sequence[str] | None = None,
        spares: Sequence[frozenset[str]] | None = None,
    ) -> None:
        """Add the gradient of each 0-d loss (a mean over the micro-batch) to its task's gradient; frees the graph.

        A parameter that a task does not reach costs nothing: autograd visits only what lies below the loss.
        `names` label the profiler's ranges. `spares` are the modules that each task leaves alone. Must be called
        `accumulation` times before each step.
        """
        if self._micro_step == self.accumulation:
            raise RuntimeError(f"backward called more than accumulation={self.accumulation} times before the step")
        self._micro_step += 1
        last = self._micro_step == self.accumulation
        for task, loss in enumerate(task_losses):
            with phase(f"backward/{names[task] if names else task}"):
                spared = spares[task] if spares else frozenset[str]()
                self.layout.add(task, self._gradients(loss, spared, task + 1 < len(task_losses)), last)
        self._losses.append([loss.detach() for loss in task_losses])

    def _gradients(self, loss: Tensor, spared: frozenset[str], keep_graph: bool) -> Sequence[Tensor | None]:
        found: list[Tensor | None] = [None] * len(self._parameters)
        if not loss.requires_grad:
            return found
        # A copy: a scalar parameter that is added to a loss gets this very tensor as its gradient.
        share = self._share.to(loss.dtype, copy=True)
        wanted = self._wanted(spared)
        parameters = [self._parameters[index] for index in wanted]
        gradients = torch.autograd.grad(loss, parameters, share, retain_graph=keep_graph, allow_unused=True)
        for index, gradient in zip(wanted, gradients, strict=True):
            found[index] = gradient
        return found

    def _wanted(self, spared: frozenset[str]) -> list[int]:
        """Positions of the parameters that a task trains."""
        if spared not in self._trained:
            names = enumerate(self.parameter_names)
            self._trained[spared] = [index for index, name in names if not belongs(name, spared)]
        return self._trained[spared]

    def balance(self, balancer: Balancer) -> StepReport:
        """Balance the task gradients, and clip the update to `optim.clip`.

        balancer: of this engine's layout.
        """
        if self._micro_step != self.accumulation:
            raise RuntimeError(f"step after {self._micro_step} of {self.accumulation} backward calls")
        self._micro_step = 0
        self._release()
        with phase("balance"), torch.no_grad():
            losses = self._mean_losses() if balancer.solver.needs_losses else None
            self._losses.clear()
            report = balancer.balance(losses, max_norm=self._clip)
            norm = report.update_norm.float()
            return StepReport(report, norm, report.finite & torch.isfinite(norm))

    def step(self, report: StepReport) -> None:
        """Step the optimiser with the balanced update and forget the gradients.

        With a non-finite gradient in any task on any rank, parameters and optimiser state keep their values everywhere.
        """
        with phase("step"):
            self.layout.place(report.balance.update)
            self._step(report.finite)
            self.layout.clear()

    def balance_and_step(self, balancer: Balancer) -> StepReport:
        """`balance`, then `step`."""
        report = self.balance(balancer)
        self.step(report)
        return report

    def abandon(self) -> None:
        """Forget a step that has been begun."""
        self._micro_step = 0
        self._losses.clear()
        self._release()
        self.layout.clear()

    @property
    def capture_obstacle(self) -> str | None:
        """Why no part of a step can be a CUDA graph; None where `balance` and all before it can."""
        return None if self.device.type == "cuda" else "a CPU has no CUDA graphs"

    @property
    def steps_from_host(self) -> bool:
        """Whether the host takes part in `step`, which then stays outside of a graph."""
        return False

    def _mean_losses(self) -> Tensor:
        """This rank's share of the mean loss values, float64 [n]."""
        return torch.stack([torch.stack(losses).double() for losses in self._losses]).sum(0) * self._share

    def _step(self, finite: Tensor) -> None:
        # The fused optimisers skip the whole step on the device where `found_inf` is 1: what torch's GradScaler uses.
        self.optimizer.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
        self.optimizer.step()

    def whole(self, changed: bool = False) -> AbstractContextManager[None]:
        """The module's parameters are whole while this is open, for evaluation; collective, and not within a step.

        `changed` keeps what is written to them, the same on all ranks; without it they must not be written to.
        """
        return nullcontext()

    def weights(self) -> dict[str, Tensor]:
        """The module's parameters and buffers on the CPU, whole; collective."""
        with self.whole():
            return {name: tensor.detach().cpu().contiguous() for name, tensor in self.module.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take over `weights()` of a module of the same shapes; collective."""
        with self.whole(changed=True):
            self.module.load_state_dict(weights)

    stored = staticmethod(stored)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every parameter group, without a host sync."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)

    def row_cuts(self) -> list[Cut]:
        """How each tensor of a task's gradient, and of the consensus direction, consists of parameters."""
        return self.layout.cuts()

    def optimizer_cuts(self) -> list[tuple[Tensor, Cut]]:
        """Each flat tensor that the optimiser steps, and how it consists of parameters."""
        stepped = [flat for group in self.optimizer.param_groups for flat in group["params"]]
        return list(zip(stepped, self.layout.stepped_cuts(), strict=True))

    @property
    def sharded(self) -> bool:
        """Whether each rank holds other entries of the optimiser's state; else every rank has all of it."""
        return self.world_size > 1 and not self.layout.partition.whole

    @property
    def parameter_names(self) -> list[str]:
        """Names of the trainable parameters, in the order that a `Cut` counts in."""
        return [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def close(self) -> None:
        """Leave the process group, where this engine opened one."""


class PlainEngine(Engine[M]):
    """One process, no DeepSpeed, the same code path."""

    def __init__(self, module: M, config: TrainConfig) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        check_card(device)
        module.to(device)
        optimizer = make_optimizer(module, config.optim, device)
        partition = WholePartition(module, optimizer)
        layout = FlatLayout(trainable(module), partition)
        super().__init__(module, optimizer, layout, config, device, bf16=config.optim.precision == "bf16")


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The module's parameters that want a gradient, in definition order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def make_optimizer(module: nn.Module, optim: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    """Fused AdamW or SGD with a tensor learning rate, fit for capture; only matrices and filters (ndim >= 2) decay."""
    wide, rest = ([p for p in trainable(module) if (p.ndim >= 2) is matrix] for matrix in (True, False))
    groups = [
        {"params": chosen, "weight_decay": decay, "lr": torch.tensor(optim.lr, device=device)}
        for chosen, decay in ((wide, optim.weight_decay), (rest, 0.0))
        if chosen
    ]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, fused=True)
    betas, on_gpu = (optim.beta1, optim.beta2), device.type == "cuda"
    adam = torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=ADAM_EPSILON, fused=True, capturable=on_gpu)
    # The first steps run as written even where a graph follows: torch would warn that this is slow.
    adam._warned_capturable_if_run_uncaptured = True
    return adam


def micro_batch_size(config: TrainConfig, world_size: int) -> int:
    """Windows in one micro-batch of one rank; `UserError` where the global batch does not divide."""
    batch, accumulation = config.loader.batch_size, config.optim.accumulation
    if batch % (world_size * accumulation):
        raise UserError(
            f"loader.batch_size={batch} does not divide by {world_size} processes x optim.accumulation={accumulation}; "
            f"use a multiple of {world_size * accumulation}"
        )
    return batch // (world_size * accumulation)
