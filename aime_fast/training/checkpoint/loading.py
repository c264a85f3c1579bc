"""Loads a trained model from a run, and exports it as two files that do not need this trainer."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save

from aime_fast import __version__
from aime_fast.config import to_dict
from aime_fast.errors import UserError
from aime_fast.model.world_model import CONFIG, WEIGHTS, DPGMMVariationalRecurrentAutoencoder
from aime_fast.training.checkpoint.files import sync_folder, write_synced
from aime_fast.training.checkpoint.opening import Note, OpenedRun, open_run, silent


def load_model(run: str | Path, note: Note = silent) -> DPGMMVariationalRecurrentAutoencoder:
    """The model of a run's best checkpoint (or its newest), of one checkpoint or of an exported folder, on the CPU.

    It is in evaluation mode. Raises `UserError` as `open_run` does.
    """
    return open_run(run, note).model()


def export(run: str | Path, out: str | Path, note: Note = silent) -> Path:
    """Write the model of a run's best checkpoint, or of one checkpoint, to the new folder `out`; return the folder.

    `DPGMMVariationalRecurrentAutoencoder.from_pretrained(out)` loads it. Weights are whole and float32 for every ZeRO
    stage. `config.json` also has the run's settings and says what it was trained on. Raises `UserError` if there is no
    intact checkpoint or `out` exists.
    """
    check_new(out)
    opened = open_run(run, note)
    return write_model(opened.model(), opened, Path(out))


def check_new(out: str | Path) -> None:
    """`UserError` if the folder `out` exists."""
    if Path(out).exists():
        raise UserError(f"--out {out} exists; give a new folder")


def write_model(model: DPGMMVariationalRecurrentAutoencoder, opened: OpenedRun, folder: Path) -> Path:
    """Write `model`, with what the run it comes from says of itself, to the new folder; as `export` does."""
    weights = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    content: dict[str, object] = {
        "class": type(model).__name__,
        "version": __version__,
        "model": asdict(model.config),
        "run": {
            "config": to_dict(opened.config),
            "data": asdict(opened.data) if opened.data else None,
            "progress": {"step": opened.step},
            "refit_of": opened.refit_of,
        },
    }
    draft = folder.with_name(f".{folder.name}.part")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        # `save_file` lets nobody else read it.
        content["weights"] = write_synced(draft / WEIGHTS, save(weights, metadata={"format": "pt"}))
        write_synced(draft / CONFIG, (json.dumps(content, indent=1) + "\n").encode())
        os.replace(draft, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); free some space, or give another --out"
        ) from error
    return folder
