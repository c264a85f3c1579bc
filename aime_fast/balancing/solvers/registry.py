"""The solvers by name. To add one: a file with a `Solver` class and an entry here."""

from aime_fast.balancing.solvers.mgda import MGDA
from aime_fast.balancing.solvers.pcgrad import PCGrad
from aime_fast.balancing.solvers.rotation import Rotation
from aime_fast.balancing.solvers.solver import Solver
from aime_fast.balancing.solvers.sum import Sum
from aime_fast.balancing.solvers.uncertainty import Uncertainty
from aime_fast.balancing.solvers.upgrad import UPGrad
from aime_fast.config import BalancingConfig
from aime_fast.errors import UserError, unknown_name

SOLVERS: dict[str, type[Solver]] = {
    "rotation": Rotation,
    "sum": Sum,
    "mgda": MGDA,
    "upgrad": UPGrad,
    "uncertainty": Uncertainty,
    "pcgrad": PCGrad,
}


def make_solver(config: BalancingConfig, tasks: int) -> Solver:
    """The solver named `config.solver` for this number of tasks. Raises UserError for another name or number."""
    if config.solver not in SOLVERS:
        raise unknown_name("--balancing.solver", config.solver, SOLVERS)
    kind = SOLVERS[config.solver]
    if tasks < kind.least_tasks or tasks > (kind.most_tasks or tasks):
        most = f" and at most {kind.most_tasks}" if kind.most_tasks else ""
        raise UserError(
            f"--balancing.solver {config.solver} needs at least {kind.least_tasks}{most} tasks, the run has {tasks}; "
            "change --tasks or use --balancing.solver sum"
        )
    return kind(config)
