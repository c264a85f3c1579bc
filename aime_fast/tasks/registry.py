"""The tasks by name. `--tasks` chooses from them."""

from collections.abc import Iterable, Sequence

from aime_fast.errors import UserError, unknown_name
from aime_fast.tasks.elbo import Elbo
from aime_fast.tasks.perceiver import Perceiver
from aime_fast.tasks.predictive import Predictive
from aime_fast.tasks.reward import Reward
from aime_fast.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "elbo": Elbo,
    "perceiver": Perceiver,
    "predictive": Predictive,
    "reward": Reward,
}
DEFAULT = ("elbo", "perceiver", "predictive")


def make_tasks(names: Sequence[str] = DEFAULT) -> list[Task]:
    """Make the named tasks, in this order. `UserError` for no name, an unknown name, or a name given twice."""
    if not any(names):
        raise UserError(f"no task to train; choose --tasks from {', '.join(TASKS)}")
    for position, name in enumerate(names):
        if name not in TASKS:
            raise unknown_name("--tasks name", name, TASKS)
        if name in names[:position]:
            raise UserError(f"task {name!r} is named twice in --tasks; name it once")
    return [TASKS[name]() for name in names]


def check_data(tasks: Iterable[Task], has_rewards: bool, where: str) -> None:
    """Raise `UserError` if a task needs rewards that the recording at `where` lacks."""
    for task in tasks:
        if task.needs_rewards and not has_rewards:
            raise UserError(f"{where} has no rewards, which task {task.name!r} needs; drop it from --tasks")


def evaluable(names: Iterable[str], has_rewards: bool) -> list[Task]:
    """The named tasks that data with or without rewards can evaluate."""
    return [TASKS[name]() for name in names if has_rewards or not TASKS[name].needs_rewards]
