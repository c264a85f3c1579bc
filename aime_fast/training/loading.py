"""A trained model from a run, without the run."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from aime_fast.config import ModelConfig
from aime_fast.errors import UserError
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.training.checkpoint import WEIGHTS, fault, find, pointed, read_state


def load_model(
    run: str | Path, note: Callable[[str], None] = lambda line: None
) -> DPGMMVariationalRecurrentAutoencoder:
    """The model of a run's best checkpoint (its newest where none was best), or of one checkpoint, in evaluation mode.

    The files are verified first; damaged ones are named through `note` and passed over. `UserError` where there is no
    sound checkpoint.
    """
    where = Path(run)
    best = where / "checkpoints" / (pointed(where / "checkpoints", "best") or "none")
    path = best if best.is_dir() and fault(best) is None else find(where, note)
    if path is None:
        raise UserError(f"{where}: no checkpoint there; name a run's folder or one of its checkpoints")
    model = DPGMMVariationalRecurrentAutoencoder.from_config(ModelConfig(**read_state(path)["config"]["model"]))
    model.load_state_dict(load_file(path / WEIGHTS))
    return model.eval()
