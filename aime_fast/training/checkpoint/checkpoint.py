"""Checkpoints: folders that appear complete or not at all, written while training continues.

    checkpoints/step-00000200/     weights.safetensors       the model, EMA teacher and codebook
                                   state.json                progress, configuration, versions
                                   rank-0-of-2.safetensors   one rank's part of optimiser, balancer and generators
                                   manifest.json             SHA-256 of every other file; written last
    checkpoints/latest, best       the name of a folder; updated after that folder is on the disk

All ranks see one file system. The loop waits while the state is copied to host memory. A thread then writes the copy
under a temporary name, syncs it and renames it.
"""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safetensors.torch import save

from aime_fast import __version__
from aime_fast.errors import UserError
from aime_fast.training.checkpoint.files import delete_folder, fresh_folder, host_copies, sync_folder, write_synced
from aime_fast.training.checkpoint.finding import (
    FORMAT,
    MANIFEST,
    STATE,
    WEIGHTS,
    Manifest,
    checkpoint_folders,
    fitting_weights,
    pointed,
    read_manifest,
    read_state,
)
from aime_fast.training.checkpoint.portable_state import StoredState
from aime_fast.training.checkpoint.state import RunState
from aime_fast.training.engines.host_group import HostGroup


class Checkpoints:
    """The checkpoints of one run folder; every method but `take_failure` is collective."""

    def __init__(self, folder: Path, hosts: HostGroup, keep: int = 2) -> None:
        """Keep the `keep` newest checkpoints and the best one."""
        self.folder, self.keep = folder, keep
        # Its own group: messages of the writing thread must not mix with those of the loop.
        self.hosts = HostGroup(hosts.rank, hosts.world_size)
        self.newest: Path | None = None
        """The newest checkpoint that is complete on the disk."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self._failure: BaseException | None = None

    def save(self, state: RunState, best: bool = False) -> None:
        """Copy every rank's state to host memory and start to write it; `best` also makes `best` point to it.

        Waits for the previous write first. `take_failure` reports a failed write, `finish` raises it.
        """
        self.settle()
        weights = state.weights()
        files: dict[str, Callable[[], bytes]] = {}
        if self.hosts.rank == 0:
            on_host, shared = host_copies(weights), json.dumps(state.shared(), indent=1)
            files = {WEIGHTS: lambda: save(on_host), STATE: shared.encode}
        of_rank = host_copies(state.of_rank())
        files[f"rank-{self.hosts.rank}-of-{self.hosts.world_size}.safetensors"] = lambda: save(of_rank)
        self._writing = self._thread.submit(self._write, f"step-{state.progress.step:08d}", files, best)

    def take_failure(self) -> str | None:
        """Why the latest write failed, reported once; None while it is under way or if it succeeded."""
        if self._writing is not None and self._writing.done():
            self.settle()
        failure, self._failure = self._failure, None
        return str(failure) if failure else None

    def finish(self) -> None:
        """Wait until the latest checkpoint is on the disk.

        Raises `UserError` on every rank if one rank could not write; the previous checkpoint is then still intact.
        """
        self.settle()
        if self._failure is not None:
            raise self._failure

    def settle(self) -> None:
        """Wait for the current write and keep its failure for `take_failure` and `finish`."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._failure = writing.exception()
            self.newest = self.newest if self._failure else writing.result()

    def close(self) -> None:
        """End the thread after the current write."""
        self._thread.shutdown(wait=True)

    def load(self, path: Path, state: RunState) -> None:
        """Restore `state` from a verified checkpoint of any engine and world size; collective.

        Raises `UserError` for a checkpoint of another model; `state` is unchanged then.
        """
        count = read_manifest(path)["world_size"]
        weights = fitting_weights(path, state.weights())
        stored = StoredState([path / f"rank-{rank}-of-{count}.safetensors" for rank in range(count)])
        state.restore(weights, read_state(path), stored, self.hosts.rank % count)
        self.newest = path

    def _write(self, name: str, files: dict[str, Callable[[], bytes]], best: bool) -> Path:
        draft = self.folder / f".{name}.part"
        try:
            self.hosts.first(lambda: fresh_folder(draft))
            parts = self.hosts.all(lambda: {file: write_synced(draft / file, make()) for file, make in files.items()})
            checksums = {file: value for part in parts for file, value in part.items()}
            self.hosts.first(lambda: self._publish(draft, name, checksums, best))
        except OSError as error:
            goes_on = "the previous one is intact: free some space, then continue with --resume auto"
            anew = "there is none yet: free some space, then start again"
            raise UserError(
                f"no checkpoint could be written to {self.folder} ({error}); {goes_on if self.newest else anew}"
            ) from error
        return self.folder / name

    def _publish(self, draft: Path, name: str, checksums: dict[str, str], best: bool) -> None:
        manifest = Manifest(format=FORMAT, version=__version__, world_size=self.hosts.world_size, files=checksums)
        write_synced(draft / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(draft)
        final = self.folder / name
        if final.exists():  # a run that resumed from an earlier step reaches this step again
            delete_folder(final)
        draft.rename(final)
        sync_folder(self.folder)
        for pointer in ["latest"] + ["best"] * best:
            write_synced(self.folder / f".{pointer}.part", name.encode())
            (self.folder / f".{pointer}.part").rename(self.folder / pointer)
        sync_folder(self.folder)
        self._prune(name)

    def _prune(self, newest: str) -> None:
        for leftover in self.folder.glob(".step-*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover)
        # Later checkpoints are abandoned: the run was resumed from before them.
        past = [path.name for path in checkpoint_folders(self.folder) if path.name <= newest]
        kept = {*past[-self.keep :], pointed(self.folder, "best")}
        for path in checkpoint_folders(self.folder):
            if path.name not in kept:
                delete_folder(path)
