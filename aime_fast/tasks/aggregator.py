"""The losses of all tasks of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from aime_fast.config import LossConfig
from aime_fast.data.batch import Batch
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.tasks.registry import DEFAULT, make_tasks
from aime_fast.tasks.task import Task, Values


class LossAggregator:
    """Computes the loss terms of every task. A term belongs to exactly one task.

    `config` has the weights of the terms. `tasks` are tasks or their names, in the order of `task_losses` (default:
    elbo, perceiver, predictive). Raises UserError for an unknown name.
    """

    def __init__(self, config: LossConfig | None = None, tasks: Sequence[Task | str] = DEFAULT) -> None:
        self.config = config or LossConfig()
        self.tasks = [task if isinstance(task, Task) else make_tasks([task])[0] for task in tasks]

    def compute_losses(
        self,
        outputs: SequenceOutputs,
        beta: float | Tensor = 1.0,
        entropy_weight: float | None = None,
        lambda_recon: float | None = None,
        lambda_att_dyn: float | None = None,
        lambda_gram: float | None = None,
        batch: Batch | Mapping[str, Tensor] | None = None,
    ) -> tuple[Values, list[Tensor]]:
        """Compute `(losses, task_losses)`: every term and figure as a 0-d tensor by name, and one loss per task.

        Args:
            outputs: what the model returned.
            beta: weight of the KL terms, in [0, 1].
            entropy_weight, lambda_recon, lambda_att_dyn, lambda_gram: replace the configuration's weights of the
                cluster entropy, the reconstruction, the attention dynamics and the Gram loss.
            batch: the windows behind `outputs`, or a dict with the fields of `Batch` as `DMCVBDataset` gives it;
                required by tasks that learn from rewards or ends.
        """
        if isinstance(batch, Mapping):
            batch = Batch(**batch)
        given = {
            "entropy_weight": entropy_weight,
            "lambda_recon": lambda_recon,
            "lambda_att_dyn": lambda_att_dyn,
            "lambda_gram": lambda_gram,
        }
        changed = {name: weight for name, weight in given.items() if weight is not None}
        weights = replace(self.config, **changed)  # type: ignore[arg-type]
        losses: Values = {}
        for task in self.tasks:
            losses |= task.losses(outputs, beta, weights, batch)
        return losses, [losses[task.total] for task in self.tasks]
