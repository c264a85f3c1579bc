"""Which folder a run writes to, what it resumes from, and that nothing is written over."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import yaml

from aime_fast.config import TrainConfig, to_dict
from aime_fast.errors import UserError
from aime_fast.training.checkpoint.checkpoint import find
from aime_fast.training.run.lock import RunLock


@dataclass(frozen=True)
class RunFolder:
    """Where a run lives."""

    path: Path
    """The run's folder; it need not exist yet."""
    checkpoint: Path | None
    """The checkpoint to go on from, verified; none starts from nothing."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Folder of the pictures."""
        return self.path / "figures"


def choose(config: TrainConfig, note: Callable[[str], None]) -> RunFolder:
    """The folder that `out` and `resume` ask for; writes nothing.

    `UserError` for a folder that holds a run already while `resume` does not continue it, for `auto` without `out`,
    and for a path without a checkpoint. `note` hears what was decided.
    """
    if config.resume is None:
        path = Path(config.out) if config.out else _new_folder(config)
        _refuse_existing(path)
        return RunFolder(path, None)
    if config.resume == "auto":
        if config.out is None:
            raise UserError("--resume auto looks for a checkpoint in --out: give the run's folder with --out")
        path = Path(config.out)
        checkpoint = find(path, note)
        note(f"resuming from {checkpoint}" if checkpoint else f"no checkpoint in {path} yet; starting from nothing")
        return RunFolder(path, checkpoint)
    checkpoint = find(Path(config.resume), note)
    if checkpoint is None:
        raise UserError(f"--resume {config.resume}: no checkpoint there; name a run's folder or one of its checkpoints")
    home = checkpoint.parent.parent
    path = Path(config.out) if config.out else home
    if path.resolve() != home.resolve():
        _refuse_existing(path)
    note(f"resuming from {checkpoint}")
    return RunFolder(path, checkpoint)


def prepare(folder: RunFolder, config: TrainConfig, note: Callable[[str], None]) -> RunLock:
    """Make the folder, lock it, and write `config.yaml`, which `--config` reads back; the lock, to be released.

    `UserError` where the folder cannot be written or another run is writing to it.
    """
    lock = RunLock(folder.path)
    try:
        folder.figures.mkdir(parents=True, exist_ok=True)
        folder.checkpoints.mkdir(exist_ok=True)
        if told := lock.acquire():
            note(told)
        reusable = to_dict(replace(config, out=None, resume=None, override=False))
        (folder.path / "config.yaml").write_text(yaml.safe_dump(reusable, sort_keys=False))
    except OSError as error:
        lock.release()
        raise UserError(f"cannot write to {folder.path} ({error}); give another folder with --out") from error
    return lock


def _refuse_existing(path: Path) -> None:
    if path.is_file():
        raise UserError(f"--out {path} is a file; name a folder")
    for sign in ("metrics.jsonl", "checkpoints"):
        if (path / sign).exists():
            raise UserError(f"{path} already holds a run; continue it with --resume auto, or name another --out")


def _new_folder(config: TrainConfig) -> Path:
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.preset}"
    return Path("runs") / name
