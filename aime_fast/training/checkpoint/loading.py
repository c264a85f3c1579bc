"""Loads a trained model from a run, and exports it as two files that do not need this trainer."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import save_file

from aime_fast import __version__
from aime_fast.config import ModelConfig
from aime_fast.errors import UserError
from aime_fast.model.world_model import CONFIG, WEIGHTS, DPGMMVariationalRecurrentAutoencoder
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


def export(run: str | Path, out: str | Path, note: Callable[[str], None] = lambda line: None) -> Path:
    """Write the model of a run's best checkpoint, or of one checkpoint, to the new folder `out`; return the folder.

    `DPGMMVariationalRecurrentAutoencoder.from_pretrained(out)` loads it. Weights are whole and float32 for every ZeRO
    stage. Raises `UserError` if there is no intact checkpoint or `out` exists.
    """
    folder = Path(out)
    if folder.exists():
        raise UserError(f"--out {out} exists; give a new folder")
    model = load_model(run, note)
    weights = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    draft = folder.with_name(f".{folder.name}.part")
    content = {"class": type(model).__name__, "version": __version__, "model": asdict(model.config)}
    try:
        draft.mkdir(parents=True, exist_ok=True)
        save_file(weights, draft / WEIGHTS, metadata={"format": "pt"})
        (draft / CONFIG).write_text(json.dumps(content, indent=1) + "\n")
        os.replace(draft, folder)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); give another --out") from error
    return folder
