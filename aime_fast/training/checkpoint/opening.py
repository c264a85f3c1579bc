"""Opens what a training left, by one rule for all verbs: a run's folder, one checkpoint, or an exported folder.

    run = open_run("runs/walker")
    path = run.data_path(None, print)
    episodes = open_store(path, "val", actions=run.reading_of_actions(path, None))
    run.check_data(episodes, print)
    model = run.model()

A run knows its settings and its data, so nothing about them has to be typed again.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from aime_fast.config import ModelConfig, TrainConfig
from aime_fast.config.options import known_options, updated
from aime_fast.data.identity import DataIdentity, fingerprint
from aime_fast.data.store import Episodes
from aime_fast.errors import UserError
from aime_fast.model.world_model import CONFIG, WEIGHTS, DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.registry import make_tasks
from aime_fast.training.checkpoint.files import checksum
from aime_fast.training.checkpoint.finding import (
    STATE,
    fault,
    find,
    fitting_weights,
    hash_of_weights,
    no_checkpoint,
    pointed,
    read_manifest,
)

Note = Callable[[str], None]
"""Receives one line for the user."""
POINTERS = ("best", "latest")
"""Files that name a run's best checkpoint and its newest."""
REFITTED = "refitted"
"""Exported folder in a run's folder: the model of a checkpoint, whose dynamics learnt anew."""
BEYOND = 0.5
"""Actions that leave the range of training by more than this part of its width may have another unit."""


def silent(line: str) -> None:
    """A `Note` that drops the line."""


@dataclass(frozen=True)
class OpenedRun:
    """A trained model that is read from the disk on demand, its settings and its data."""

    folder: Path
    """The verified checkpoint, or the exported folder."""
    exported: bool
    """Whether it is an exported folder, which training cannot continue."""
    config: TrainConfig
    """The settings of the run; `config.model` has the sizes of the data."""
    data: DataIdentity | None
    """What it was trained on; None if an older version wrote it without."""
    step: int
    """Optimiser steps behind the weights."""
    refit_of: str | None = None
    """`hash_of_weights` of the checkpoint whose dynamics learnt anew; None if they are those of training."""

    def model(self) -> DPGMMVariationalRecurrentAutoencoder:
        """The model with its heads, on the CPU and in evaluation mode. `UserError` if the weights do not fit it."""
        tasks = make_tasks(self.config.tasks)
        if self.exported:
            return DPGMMVariationalRecurrentAutoencoder.from_pretrained(self.folder, tasks)
        model = DPGMMVariationalRecurrentAutoencoder.from_config(self.config.model)
        model.add_heads(tasks)
        model.load_state_dict(fitting_weights(self.folder, model.state_dict()))
        return model.eval()

    def data_path(self, asked: str | None, note: Note = silent) -> str | None:
        """The data to open: `asked` (the option --data), or else the run's own; None is the shipped sample.

        `note` is told which, and whether the run's own have changed since. `UserError` if they are not where they were.
        """
        own = self.data.path if self.data else self.config.data
        if asked is not None:
            note(f"data: {asked} by --data; the run was trained on {self.data or own or 'the shipped sample'}")
            return asked
        if self.exported and self.data is None:
            raise UserError(f"{self.folder} does not say what it was trained on; name data with --data")
        try:
            now = fingerprint(own)
        except OSError as error:
            raise UserError(
                f"{self.folder}: its data {own} cannot be read ({error.strerror}); say where they are with --data"
            ) from error
        note(f"data: {self.data or own or 'the shipped sample'}, on which the run was trained")
        if self.data and now != self.data.fingerprint:
            note(f"warning: {own} has changed since the run was trained")
        return own

    def reading_of_actions(self, path: str | None, asked: str | None) -> str | None:
        """How to read the actions of a recording at `path`: as `asked`, or as the run did if it was trained on it.

        None leaves it to the content, as for `open_store`. A recording that was moved is still the run's.
        """
        if asked is not None or self.data is None:
            return asked or self.config.actions
        try:
            own = path == self.data.path or fingerprint(path) == self.data.fingerprint
        except OSError:  # opening says more
            own = False
        return self.config.actions if own else None

    def check_data(self, episodes: Episodes, note: Note = silent) -> None:
        """Check that these episodes are of the model's kind.

        `UserError` if their actions or frames have other sizes. `note` is told if they were recorded in another
        environment, if their actions meant something else in the recording, or go far beyond those of training.
        """
        sizes, size = self.config.model, self.config.model.image_size
        if episodes.action_dim != sizes.action_dim:
            raise UserError(
                f"the data's actions have {episodes.action_dim} numbers and the model's {sizes.action_dim}; "
                "name the data it was trained on with --data"
            )
        if episodes.image_size != size:
            raise UserError(
                f"the data's frames are not {size}x{size} as the model's; use `aime-fast pack --size {size}`"
            )
        if self.data is None:
            note("warning: the run does not say what its actions mean, so only their number was checked")
            return
        if None not in (episodes.environment, self.data.environment) and episodes.environment != self.data.environment:
            note(
                f"warning: the data are of {episodes.environment} and the run's of {self.data.environment}: "
                "its actions may mean something else"
            )
        meant, own = episodes.origin, self.data.actions
        if meant and own and meant.stored != own.stored:
            note(
                f"warning: actions of the data {meant.meaning} ({meant.evidence}), those of training {own.meaning} "
                f"({own.evidence}): check that both are so"
            )
        for number, (low, high, own_low, own_high) in enumerate(
            zip(*episodes.action_range(), self.data.action_low, self.data.action_high, strict=True)
        ):
            room = BEYOND * (own_high - own_low)
            if low < own_low - room or high > own_high + room:
                note(
                    f"warning: number {number} of the data's actions goes from {low:g} to {high:g}, in training from "
                    f"{own_low:g} to {own_high:g}: check that it means the same"
                )
                return


def open_run(run: str | Path, note: Note = silent, refitted: bool = True) -> OpenedRun:
    """Open a run's folder (its best checkpoint, or its newest), one checkpoint, or an exported folder.

    Where the dynamics of that checkpoint of a run's folder have learnt anew, the model with them is opened, unless
    `refitted` is False. Verifies the checkpoint's files; skips damaged checkpoints and reports them through `note`.
    Raises `UserError` if there is nothing of the kind, and if another version wrote it.
    """
    where = Path(run)
    if (where / CONFIG).is_file():
        return _exported(where)
    best, newest = (where / "checkpoints" / (pointed(where / "checkpoints", name) or "none") for name in POINTERS)
    path = best if best.is_dir() and fault(best) is None else find(where, note)
    if path == best and newest.is_dir() and best != newest:
        note(f"weights: the best checkpoint by validation, {best}; the newest is {newest.name}")
    if path is None:
        raise no_checkpoint(where)
    if (
        refitted
        and path != where
        and (where / REFITTED).is_dir()
        and (renewed := _renewed(where / REFITTED, path, note))
    ):
        return renewed
    try:
        return _opened(path, False, _RECORD.validate_json((path / STATE).read_bytes()), read_manifest(path)["version"])
    except ValidationError as error:
        raise UserError(
            f"{path / STATE} cannot be read ({error.errors()[0]['msg']}); name another checkpoint"
        ) from error


def _renewed(folder: Path, checkpoint: Path, note: Note) -> OpenedRun | None:
    """The model whose dynamics learnt anew, if it is that of the checkpoint; `note` is told either way."""
    try:
        renewed = _exported(folder)
    except UserError:
        note(f"dynamics: those of training; {folder} is damaged, and --resume {folder.parent} makes it again")
        return None
    if renewed.refit_of != hash_of_weights(checkpoint):
        note(f"dynamics: those of training; {folder} belongs to other weights")
        return None
    note(f"dynamics: learnt anew from its latents, {folder}")
    return renewed


def _exported(folder: Path) -> OpenedRun:
    """An exported folder; one of an older version names the sizes of the model only."""
    try:
        content = _EXPORT.validate_json((folder / CONFIG).read_bytes())
        if content.weights not in (None, checksum(folder / WEIGHTS)):
            raise OSError(f"{WEIGHTS} does not match its checksum")
    except (OSError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(f"{folder} holds no exported model ({why}); write one with `aime-fast export`") from error
    record = content.run or _Record({}, _Progress(0))
    record.config["model"] = content.model
    return _opened(folder, True, record, content.version)


def _opened(path: Path, exported: bool, record: "_Record", version: str) -> OpenedRun:
    """Settings that this program no longer has are left out, except those of the model."""
    sizes = _SIZES.validate_python(record.config.get("model"))
    if unknown := sorted(sizes.keys() - {item.name for item in fields(ModelConfig)}):
        raise UserError(f"{path}: this program's model has no {unknown[0]}; use the version that wrote it ({version})")
    config = updated(TrainConfig(), known_options(record.config), str(path))
    return OpenedRun(path, exported, config, record.data, record.progress.step, record.refit_of)


@dataclass
class _Progress:
    step: int


@dataclass
class _Record:
    """What a checkpoint or an exported folder says about its run."""

    config: dict[str, object]
    progress: _Progress
    data: DataIdentity | None = None
    refit_of: str | None = None


@dataclass
class _Export:
    """The description of an exported folder."""

    model: dict[str, object]
    version: str = "unknown"
    run: _Record | None = None
    weights: str | None = None
    """SHA-256 of the weights' file; older versions wrote none."""


_RECORD, _EXPORT, _SIZES = TypeAdapter(_Record), TypeAdapter(_Export), TypeAdapter(dict[str, object])
