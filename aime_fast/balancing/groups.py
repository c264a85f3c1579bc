"""Groups of parameters that are balanced apart: `--balancing.groups`."""

from collections.abc import Sequence
from typing import NamedTuple

from aime_fast.errors import unknown_name

GROUPS = ("all", "shared", "module")


class Groups(NamedTuple):
    """Which group each parameter is in. Groups from `balanced` on take the plain sum of their task gradients."""

    group_of: list[int]
    number: int
    balanced: int


def make_groups(kind: str, names: Sequence[str], tasks_reaching: Sequence[set[int]]) -> Groups:
    """Divide the parameters.

    kind: `all` is one group. `module`: each top-level child of the model. `shared`: the children with
    a parameter that at least two tasks reach are one group; the others take their task's gradient as it is. Children,
    because the gradient of a compiled region is zeros, and not none, for a parameter that a task does not reach.
    names: of all parameters. tasks_reaching: for each parameter the tasks with a gradient of it.
    Raises UserError for another kind.
    """
    if kind not in GROUPS:
        raise unknown_name("--balancing.groups", kind, GROUPS)
    if kind == "all":
        return Groups([0] * len(names), 1, 1)
    children = [name.partition(".")[0] for name in names]
    if kind == "shared":
        met = {child for child, tasks in zip(children, tasks_reaching, strict=True) if len(tasks) > 1}
        return Groups([0 if child in met else 1 for child in children], 2, 1)
    number = {child: position for position, child in enumerate(dict.fromkeys(children))}
    return Groups([number[child] for child in children], len(number), len(number))
