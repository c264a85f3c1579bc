"""Finds and verifies checkpoints, and reads what they say about the run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

from safetensors.torch import load_file
from torch import Tensor

from aime_fast.data.shards.manifest import holds_shards
from aime_fast.errors import UserError
from aime_fast.model.world_model import WEIGHTS as EXPORTED
from aime_fast.training.checkpoint.files import checksum
from aime_fast.training.checkpoint.state import Shared

FORMAT = 3
"""Raise it whenever a checkpoint of the previous version can no longer be read."""
FIRST_VERSION = "0.1.0"
"""Version of the program whose manifests do not name a version: formats 1 and 2."""
WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.json", "manifest.json"


class Manifest(TypedDict):
    """Content of `manifest.json`."""

    format: int
    version: str
    """Version of aime-fast that wrote the checkpoint."""
    world_size: int
    files: dict[str, str]
    """SHA-256 of every other file, by name."""


def find(where: Path, note: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest intact checkpoint of a run's folder or a folder of checkpoints, or `where` itself if it is one.

    Skips damaged checkpoints and reports each through `note`. Returns None if there is no checkpoint. Raises
    `UserError` if every checkpoint is damaged, if `where` is a damaged one, or if another version wrote it.
    """
    if (where / MANIFEST).is_file() and not holds_shards(where):
        if problem := fault(where):
            raise UserError(f"checkpoint {where} is damaged ({problem}); give its run's folder to use another")
        return where
    found = checkpoint_folders(where / "checkpoints") or checkpoint_folders(where)
    for path in reversed(found):
        problem = fault(path)
        if problem is None:
            return path
        note(f"checkpoint {path} is damaged ({problem}); trying the previous one")
    if found:
        raise UserError(f"every checkpoint in {where} is damaged; start a new run in another folder with --out")
    return None


def no_checkpoint(where: Path) -> UserError:
    """The error for a place without a checkpoint."""
    if holds_shards(where):
        return UserError(f"{where} holds data, not a run; give a run's folder or one of its checkpoints")
    if (where / EXPORTED).is_file():
        return UserError(f"{where} is an exported model, without what training needs; give the run that it came from")
    return UserError(f"{where}: no checkpoint there; give a run's folder or one of its checkpoints")


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None; reads all of them. `UserError` for another version's format."""
    try:
        manifest = read_manifest(path)
        if manifest["format"] == FORMAT:
            wrong = (file for file, expected in manifest["files"].items() if checksum(path / file) != expected)
            return next((f"{file} does not match its checksum" for file in wrong), None)
        version = manifest.get("version", FIRST_VERSION)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    raise UserError(
        f"{path} was written by aime-fast {version} (checkpoint format {manifest['format']}, this version reads "
        f"{FORMAT}); use aime-fast {version} for it, or start a new run in another folder with --out"
    )


def hash_of_weights(checkpoint: Path) -> str:
    """Sixteen hex digits that change with the weights of a checkpoint, whose manifest has hashes, or exported model."""
    manifest = checkpoint / MANIFEST
    return checksum(manifest if manifest.is_file() else checkpoint / EXPORTED)[:16]


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that have a manifest, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MANIFEST).is_file())


def pointed(folder: Path, pointer: str) -> str | None:
    """The folder name that `latest` or `best` holds; None if there is no such file."""
    path = folder / pointer
    return path.read_text().strip() if path.is_file() else None


def read_manifest(path: Path) -> Manifest:
    """A checkpoint's manifest."""
    manifest: Manifest = json.loads((path / MANIFEST).read_text())
    return manifest


def read_state(path: Path) -> Shared:
    """A checkpoint's progress, configuration and versions."""
    shared: Shared = json.loads((path / STATE).read_text())
    return shared


def fitting_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights; `UserError` if their names or shapes differ from the wanted ones."""
    weights: dict[str, Tensor] = load_file(path / WEIGHTS)
    for name in sorted(weights.keys() | wanted.keys()):
        there, here = (list(part[name].shape) if name in part else "missing" for part in (weights, wanted))
        if there != here:
            raise UserError(
                f"{path} holds another model: {name} is {there} there and {here} in this program; "
                f"use the version that wrote it ({read_manifest(path)['version']})"
            )
    return weights
