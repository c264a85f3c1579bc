"""Loads a trained model from a run."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from aime_fast.config import ModelConfig
from aime_fast.errors import UserError
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.registry import make_tasks
from aime_fast.training.checkpoint.finding import fault, find, fitting_weights, pointed, read_manifest, read_state


def load_model(
    run: str | Path, note: Callable[[str], None] = lambda line: None
) -> DPGMMVariationalRecurrentAutoencoder:
    """The model of a run's best checkpoint (or its newest), or of one checkpoint, in evaluation mode, on the CPU.

    Verifies the files; skips damaged checkpoints and reports them through `note`. Raises `UserError` if there is no
    intact checkpoint or if another version wrote it.
    """
    where = Path(run)
    best = where / "checkpoints" / (pointed(where / "checkpoints", "best") or "none")
    path = best if best.is_dir() and fault(best) is None else find(where, note)
    if path is None:
        raise UserError(f"{where}: no checkpoint there; give a run's folder or one of its checkpoints")
    config = read_state(path)["config"]
    sizes, tasks = config["model"], config["tasks"]
    assert isinstance(sizes, dict) and isinstance(tasks, list)
    if unknown := sorted(sizes.keys() - {item.name for item in fields(ModelConfig)}):
        version = read_manifest(path)["version"]
        raise UserError(f"{path}: this program's model has no {unknown[0]}; use the version that wrote it ({version})")
    model = DPGMMVariationalRecurrentAutoencoder.from_config(ModelConfig(**sizes))
    model.add_heads(make_tasks(tasks))
    model.load_state_dict(fitting_weights(path, model.state_dict()))
    return model.eval()
