"""Chooses a run's folder and the checkpoint it resumes from; never overwrites another run."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import yaml

from aime_fast.config import TrainConfig, to_dict
from aime_fast.data.identity import absolute
from aime_fast.errors import UserError
from aime_fast.training.checkpoint.finding import find, no_checkpoint
from aime_fast.training.run.lock import RunLock


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes."""

    path: Path
    """The run's folder; it may not exist yet."""
    checkpoint: Path | None
    """The verified checkpoint to resume from; none starts a new run."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Folder of the pictures."""
        return self.path / "figures"


def choose(config: TrainConfig, note: Callable[[str], None]) -> RunFolder:
    """The folder for `config.out` and `config.resume`; writes nothing. `note` receives messages for the log.

    Raises `UserError` if the folder already holds a run that `resume` does not continue, if `auto` comes without
    `out`, or if there is no checkpoint at the given path.
    """
    if config.resume == "auto" and config.out is None:
        raise UserError("--resume auto looks for a checkpoint in --out: give the run's folder with --out")
    if config.resume in (None, "auto"):
        path = Path(config.out or f"runs/{datetime.now():%Y%m%d-%H%M%S}-{config.preset}")
        if config.resume is None:
            _refuse_existing(path)
            return RunFolder(path, None)
        checkpoint = find(path, note)
        note(f"resuming from {checkpoint}" if checkpoint else f"no checkpoint in {path} yet; starting a new run")
        return RunFolder(path, checkpoint)
    checkpoint = find(Path(config.resume), note)
    if checkpoint is None:
        raise no_checkpoint(Path(config.resume))
    home = checkpoint.parent.parent
    path = Path(config.out) if config.out else home
    if path.resolve() != home.resolve():
        _refuse_existing(path)
    note(f"resuming from {checkpoint}")
    return RunFolder(path, checkpoint)


def prepare(folder: RunFolder, config: TrainConfig, note: Callable[[str], None]) -> RunLock:
    """Create the folder, lock it and write `config.yaml`, which `--config` reads. Returns the lock; release it.

    Raises `UserError` if the folder cannot be written or another run is using it.
    """
    lock = RunLock(folder.path)
    try:
        folder.figures.mkdir(parents=True, exist_ok=True)
        folder.checkpoints.mkdir(exist_ok=True)
        if message := lock.acquire():
            note(message)
        engine = config.ds_config
        if engine and os.path.isfile(engine):
            engine = os.path.abspath(engine)  # like the data, it is found from any folder
        own = replace(config, data=absolute(config.data), ds_config=engine)
        reusable = to_dict(replace(own, out=None, resume=None, override=False))
        (folder.path / "config.yaml").write_text(yaml.safe_dump(reusable, sort_keys=False), encoding="utf-8")
    except OSError as error:
        lock.release()
        raise UserError(f"cannot write to {folder.path} ({error}); give another folder with --out") from error
    return lock


def _refuse_existing(path: Path) -> None:
    if path.is_file():
        raise UserError(f"--out {path} is a file; give a folder")
    if any((path / name).exists() for name in ("metrics.jsonl", "checkpoints", "config.yaml")):
        raise UserError(f"{path} already holds a run; continue it with --resume auto, or give another --out")
