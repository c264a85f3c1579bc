"""Exports a trained model as two files that do not need this trainer: safetensors and JSON."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from aime_fast import __version__
from aime_fast.errors import UserError
from aime_fast.model.world_model import CONFIG, WEIGHTS
from aime_fast.training.checkpoint.loading import load_model


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
