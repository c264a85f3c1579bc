"""What a task is: one loss with its own gradient, and all that belongs to it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import ClassVar

from torch import Tensor, nn

from aime_fast.config import LossConfig, ModelConfig
from aime_fast.data.batch import Batch
from aime_fast.model.outputs import SequenceOutputs

Values = dict[str, Tensor]
"""Tensors by name; 0-d unless said otherwise."""


def belongs(parameter: str, modules: Iterable[str]) -> bool:
    """Whether a parameter, by its full name, is part of one of the modules, by theirs."""
    return any(parameter.startswith(f"{module}.") for module in modules)


class Task(ABC):
    """One training task; gradient balancing sees one gradient per task.

    A task has no parameters of its own. A task that needs some brings a head: a module that reads the latent state of
    every frame. It is registered as `model.heads[name]`, and its output is `outputs.heads[name]`.
    """

    name: ClassVar[str]
    """Name on the command line and in metrics such as `grad_norm_NAME`."""
    total: ClassVar[str]
    """Name of the task's loss, the sum of its weighted terms."""
    needs_rewards: ClassVar[bool] = False
    """Whether the recording must have rewards."""
    spares: ClassVar[frozenset[str]] = frozenset()
    """Modules of the model that the task's gradient leaves alone, as if it stopped where their outputs are read."""
    compiled: ClassVar[tuple[str, ...]] = ("terms",)
    """Methods that `torch.compile` compiles as one region each."""
    compile_options: ClassVar[dict[str, int]] = {}
    """Inductor options for them."""

    @abstractmethod
    def terms(self, outputs: SequenceOutputs, weights: LossConfig, targets: Values) -> Values:
        """The loss terms, 0-d by name."""

    def weighted(self, terms: Values, beta: float | Tensor, weights: LossConfig) -> Tensor:
        """The sum of the weighted terms, 0-d; `beta` in [0, 1] is the weight of KL terms."""
        return reduce(add, terms.values())

    def figures(self, outputs: SequenceOutputs) -> Values:
        """Values that are reported and not trained on, 0-d by name."""
        return {}

    def losses(
        self, outputs: SequenceOutputs, beta: float | Tensor, weights: LossConfig, batch: Batch | None
    ) -> Values:
        """Terms, total and figures, 0-d by name; only the total needs a gradient. `batch` has the targets."""
        if batch is None and self.needs_rewards:
            raise ValueError(f"task {self.name!r} has targets; call compute_losses(outputs, ..., batch=batch)")
        terms = self.terms(outputs, weights, {} if batch is None else self.targets(batch))
        return terms | {self.total: self.weighted(terms, beta, weights)} | self.figures(outputs)

    def shown(self) -> dict[str, str]:
        """Metrics on the progress line: label -> metric name."""
        return {self.name: self.total}

    def head(self, config: ModelConfig) -> nn.Module | None:
        """Make the task's head, which maps a `LatentState` to a tensor [B, T, ...]; None for no head."""
        return None

    def targets(self, batch: Batch) -> Values:
        """Recorded values that the head predicts, float [B, T] by name; NaN for frames without one."""
        return {}

    def predictions(self, read: Tensor) -> Values:
        """The head's output [B, T, ...] as predictions of the `targets`, float [B, T] by the same names."""
        return {}
