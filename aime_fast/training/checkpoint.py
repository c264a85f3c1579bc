"""Checkpoints: folders that appear whole or not at all.

    checkpoints/step-00000200/     weights.safetensors   the model, EMA teacher and codebook
                                   state.json            progress, configuration, versions
                                   rank-0-of-2.pt ...    optimiser, RGB and generators of each rank
                                   manifest.json         size and SHA-256 of every other file; written last
    checkpoints/latest, best       the name of a folder; moved after that folder is on the disk

All ranks see one file system. A checkpoint is written under a temporary name, synced, renamed.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from aime_fast.errors import UserError
from aime_fast.training.peers import Peers
from aime_fast.training.state import RunState

FORMAT = 1
WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.json", "manifest.json"


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, peers: Peers, keep: int = 2) -> None:
        """`keep` newest checkpoints stay, and the best."""
        self.folder, self.peers, self.keep = folder, peers, keep

    def save(self, state: RunState, best: bool = False) -> Path:
        """Write the state of every rank; collective. `best` also points `best` here.

        Raises `UserError` on every rank where one could not write; the previous checkpoint is then untouched.
        """
        name = f"step-{state.progress.step:08d}"
        temporary = self.folder / f".{name}.part"
        self._on_first(lambda: _fresh_folder(temporary))
        files: dict[str, Callable[[], bytes]] = {self._rank_file(): lambda: _torch_bytes(state.own())}
        weights = state.weights()
        if self.peers.rank == 0:
            files[WEIGHTS] = lambda: save(_separate(weights))
            files[STATE] = lambda: json.dumps(state.shared(), indent=1).encode()
        entries = self._everywhere(lambda: {file: _write(temporary / file, make()) for file, make in files.items()})
        self._on_first(lambda: self._publish(temporary, name, [e for part in entries for e in part.items()], best))
        return self.folder / name

    def _publish(self, temporary: Path, name: str, entries: list[tuple[str, Any]], best: bool) -> None:
        manifest = {"format": FORMAT, "world_size": self.peers.world_size, "files": dict(entries)}
        _write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(temporary)
        final = self.folder / name
        if final.exists():  # A run that resumed from further back comes by here again.
            outdated = _fresh_folder(self.folder / f".{name}.old")
            final.rename(outdated / name)
            shutil.rmtree(outdated)
        temporary.rename(final)
        _sync(self.folder)
        for pointer in ["latest"] + ["best"] * best:
            _write(self.folder / f".{pointer}.part", name.encode())
            (self.folder / f".{pointer}.part").rename(self.folder / pointer)
        _sync(self.folder)
        self._prune()

    def _prune(self) -> None:
        for leftover in self.folder.glob(".step-*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover)
        kept = {path.name for path in checkpoint_folders(self.folder)[-self.keep :]} | {pointed(self.folder, "best")}
        for path in checkpoint_folders(self.folder):
            if path.name not in kept:
                shutil.rmtree(path)

    def load(self, path: Path, state: RunState) -> None:
        """Restore `state` from a verified checkpoint; collective. `UserError` for another model or world size."""
        shared = read_state(path)
        if difference := changes(shared["config"]["model"], state.shared()["config"]["model"]):
            raise UserError(f"{path} is of another model: {difference}; give the sizes it was trained with")
        own = path / self._rank_file()
        if not own.exists():
            count = json.loads((path / MANIFEST).read_text())["world_size"]
            raise UserError(
                f"{path} was written by {count} process(es) and this run has {self.peers.world_size}; "
                f"start {count} to resume it"
            )
        with state.engine.whole():
            weights = fitting_weights(path, state.engine.module)
        state.restore(weights, shared, torch.load(own, map_location="cpu", weights_only=True))

    def _rank_file(self) -> str:
        return f"rank-{self.peers.rank}-of-{self.peers.world_size}.pt"

    def _everywhere(self, action: Callable[[], Any]) -> list[Any]:
        """Every rank's outcome of `action`; a failure to write on one is a `UserError` on all."""
        outcome, failure = None, None
        try:
            outcome = action()
        except OSError as error:
            failure = f"rank {self.peers.rank}: {error}"
        told = self.peers.gather((outcome, failure))
        if failures := [failure for _, failure in told if failure]:
            raise UserError(
                f"no checkpoint could be written to {self.folder} ({'; '.join(failures)}); the previous one is intact: "
                "make room, then go on with --resume auto"
            )
        return [outcome for outcome, _ in told]

    def _on_first(self, action: Callable[[], Any]) -> None:
        self._everywhere(lambda: action() if self.peers.rank == 0 else None)


def checkpoint_folders(folder: Path) -> list[Path]:
    """The complete-looking checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MANIFEST).is_file())


def pointed(folder: Path, pointer: str) -> str | None:
    """The name that `latest` or `best` holds; none where there is none."""
    path = folder / pointer
    return path.read_text().strip() if path.is_file() else None


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's progress, configuration and versions."""
    return json.loads((path / STATE).read_text())


def fitting_weights(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's weights; `UserError` where their names or shapes are not the module's."""
    weights, wanted = load_file(path / WEIGHTS), module.state_dict()
    for name in sorted(weights.keys() | wanted.keys()):
        there, here = (list(part[name].shape) if name in part else "missing" for part in (weights, wanted))
        if there != here:
            version = read_state(path)["versions"]["aime-fast"]
            raise UserError(
                f"{path} is of another model: {name} is {there} there and {here} in this program; "
                f"use the version that wrote it ({version})"
            )
    return weights


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or none: reads all of them and compares their checksums."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] > FORMAT:
            return f"its format {manifest['format']} is newer than this program's {FORMAT}"
        for file, entry in manifest["files"].items():
            content = (path / file).read_bytes()
            if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
                return f"{file} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def find(where: Path, note: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest sound checkpoint of a run folder or a folder of checkpoints, or `where` itself if it is one.

    Damaged ones are named through `note` and passed over; none where there is no checkpoint at all. `UserError` where
    all are damaged, or the one asked for is.
    """
    if (where / MANIFEST).is_file():
        if problem := fault(where):
            raise UserError(f"checkpoint {where} is damaged ({problem}); name its run's folder to take another")
        return where
    found = checkpoint_folders(where / "checkpoints") or checkpoint_folders(where)
    for path in reversed(found):
        problem = fault(path)
        if problem is None:
            return path
        note(f"checkpoint {path} is damaged ({problem}); trying the one before")
    if found:
        raise UserError(f"every checkpoint in {where} is damaged; start again in another folder with --out")
    return None


def changes(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Differing entries of two nested dicts as `name saved -> wanted, ...`; empty where they agree."""
    old, new = _flat(saved), _flat(wanted)
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in names)


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without shared memory, which safetensors refuses."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.numel() * tensor.element_size()
        out[name] = tensor if whole and storage.data_ptr() not in seen else tensor.clone()
        seen.add(storage.data_ptr())
    return out


def _torch_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> dict[str, Any]:
    """Write and sync one file; its size and checksum."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fresh_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
