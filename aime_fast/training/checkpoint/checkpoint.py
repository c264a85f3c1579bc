"""Checkpoints: folders that appear whole or not at all, written while training goes on.

    checkpoints/step-00000200/     weights.safetensors        the model, EMA teacher and codebook
                                   state.json                 progress, configuration, versions
                                   named-0-of-2.safetensors   a rank's share of optimiser and RGB, by parameter name
                                   rank-0-of-2.pt             generators and RGB's angles of a rank
                                   manifest.json              size and SHA-256 of every other file; written last
    checkpoints/latest, best       the name of a folder; moved after that folder is on the disk

All ranks see one file system. A checkpoint is copied to host memory while the loop waits, then written by a thread
under a temporary name, synced, renamed.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from aime_fast.errors import UserError
from aime_fast.training.checkpoint.portable_state import StoredState
from aime_fast.training.checkpoint.settings import changes
from aime_fast.training.checkpoint.state import RunState
from aime_fast.training.engines.host_group import HostGroup

FORMAT = 2
WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.json", "manifest.json"


class Checkpoints:
    """The checkpoints of one run folder; every method but `news` is called by all ranks."""

    def __init__(self, folder: Path, peers: HostGroup, keep: int = 2) -> None:
        """`keep` newest checkpoints stay, and the best."""
        self.folder, self.keep = folder, keep
        # A group of its own: what the thread agrees on never meets what the loop agrees on.
        self.peers = HostGroup(peers.rank, peers.world_size)
        self.newest: Path | None = None
        """The newest one that is complete on the disk."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self._untold: str | None = None

    def save(self, state: RunState, best: bool = False) -> None:
        """Copy every rank's state to host memory and begin to write it; `best` also points `best` here.

        Waits first for the checkpoint before it. A failure to write is told by `news` and raised by `finish`.
        """
        self.settle()
        weights = state.weights()
        files: dict[str, Callable[[], bytes]] = {}
        if self.peers.rank == 0:
            on_host, shared = _host_copies(weights), json.dumps(state.shared(), indent=1)
            files = {WEIGHTS: lambda: save(on_host), STATE: shared.encode}
        if named := _host_copies(state.named()):
            files[self._rank_file("named-{}.safetensors")] = lambda: save(named)
        own = _torch_bytes(state.own())
        files[self._rank_file("rank-{}.pt")] = lambda: own
        self._writing = self._thread.submit(self._write, f"step-{state.progress.step:08d}", files, best)

    def news(self) -> str | None:
        """Why the latest checkpoint could not be written, once; none while it is being written or where all is well."""
        if self._writing is not None and self._writing.done():
            self.settle()
        told, self._untold = self._untold, None
        return told

    def finish(self) -> None:
        """Wait until the latest checkpoint is on the disk.

        Raises `UserError` on every rank where one could not write it; the previous checkpoint is then untouched.
        """
        writing = self._writing
        self.settle()
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the thread after the write under way."""
        self._thread.shutdown(wait=True)

    def settle(self) -> None:
        """Wait for the write under way, whatever comes of it."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            self.newest = writing.result()
        except UserError as error:
            self._untold = str(error)

    def _write(self, name: str, files: dict[str, Callable[[], bytes]], best: bool) -> Path:
        temporary = self.folder / f".{name}.part"
        self._on_first(lambda: _fresh_folder(temporary))
        entries = self._everywhere(lambda: {file: _write(temporary / file, make()) for file, make in files.items()})
        self._on_first(lambda: self._publish(temporary, name, [e for part in entries for e in part.items()], best))
        return self.folder / name

    def _publish(self, temporary: Path, name: str, entries: list[tuple[str, Any]], best: bool) -> None:
        manifest = {"format": FORMAT, "world_size": self.peers.world_size, "files": dict(entries)}
        _write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(temporary)
        final = self.folder / name
        if final.exists():  # a run that resumed from further back comes by here again
            self._remove(final)
        temporary.rename(final)
        _sync(self.folder)
        for pointer in ["latest"] + ["best"] * best:
            _write(self.folder / f".{pointer}.part", name.encode())
            (self.folder / f".{pointer}.part").rename(self.folder / pointer)
        _sync(self.folder)
        self._prune(name)

    def _prune(self, newest: str) -> None:
        for leftover in self.folder.glob(".step-*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover)
        # Later ones are of a future that was given up: the run was resumed from before them.
        past = [path.name for path in checkpoint_folders(self.folder) if path.name <= newest]
        kept = {*past[-self.keep :], pointed(self.folder, "best")}
        for path in checkpoint_folders(self.folder):
            if path.name not in kept:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Delete a checkpoint that a kill in the middle must not leave behind in parts."""
        outdated = _fresh_folder(self.folder / f".{path.name}.old")
        path.rename(outdated / path.name)
        shutil.rmtree(outdated)

    def load(self, path: Path, state: RunState) -> None:
        """Restore `state` from a verified checkpoint, whatever engine and world size wrote it; collective.

        `UserError` for another model.
        """
        shared = read_state(path)
        if difference := changes(shared["config"]["model"], state.shared()["config"]["model"]):
            raise UserError(f"{path} is of another model: {difference}; give the sizes it was trained with")
        count = json.loads((path / MANIFEST).read_text())["world_size"]
        weights = fitting_weights(path, state.weights())
        own = path / f"rank-{self.peers.rank % count}-of-{count}.pt"
        stored = StoredState(sorted(path.glob("named-*.safetensors")))
        state.restore(weights, shared, stored, torch.load(own, map_location="cpu", weights_only=True))
        self.newest = path

    def _rank_file(self, name: str) -> str:
        return name.format(f"{self.peers.rank}-of-{self.peers.world_size}")

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


def fitting_weights(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights; `UserError` where their names or shapes are not the wanted ones."""
    weights = load_file(path / WEIGHTS)
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
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']} and this program's {FORMAT}"
        for file, entry in manifest["files"].items():
            with (path / file).open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != entry["sha256"]:
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


def _host_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory that nothing else writes to; from a device they travel together."""
    copies = {}
    for name, tensor in tensors.items():
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name] = copy.copy_(tensor.detach(), non_blocking=True)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies


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
