"""A trained model from a run, without the run."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from aime_fast.config import ModelConfig
from aime_fast.errors import UserError
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.registry import DEFAULT, make_tasks
from aime_fast.training.checkpoint.checkpoint import fault, find, fitting_weights, pointed, read_state


def load_model(
    run: str | Path, note: Callable[[str], None] = lambda line: None
) -> DPGMMVariationalRecurrentAutoencoder:
    """The model of a run's best checkpoint (its newest where none was best), or of one checkpoint, in evaluation mode.

    The files are verified first; damaged ones are named through `note` and passed over. `UserError` where there is no
    sound checkpoint, or where it is of another version's model.
    """
    where = Path(run)
    best = where / "checkpoints" / (pointed(where / "checkpoints", "best") or "none")
    path = best if best.is_dir() and fault(best) is None else find(where, note)
    if path is None:
        raise UserError(f"{where}: no checkpoint there; name a run's folder or one of its checkpoints")
    state = read_state(path)
    sizes, known = state["config"]["model"], {item.name for item in fields(ModelConfig)}
    if unknown := sorted(sizes.keys() - known):
        version = state["versions"]["aime-fast"]
        raise UserError(f"{path}: this program's model has no {unknown[0]}; use the version that wrote it ({version})")
    model = DPGMMVariationalRecurrentAutoencoder.from_config(ModelConfig(**sizes))
    model.add_heads(make_tasks(state["config"].get("tasks", DEFAULT)))
    model.load_state_dict(fitting_weights(path, model.state_dict()))
    return model.eval()
