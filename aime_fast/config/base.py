"""What a configuration starts from: a preset, or the settings of the run that is resumed."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from aime_fast.config.options import checked, known_options, preset_config, updated
from aime_fast.config.schema import TrainConfig
from aime_fast.errors import UserError

DEFAULT_EPOCHS = 100
"""Length of a run without epochs, steps and minutes."""
OF_ONE_CALL = ("out", "resume", "override")
"""Options that are not part of a run."""


def configured(config: TrainConfig | None, changes: Mapping[str, Any]) -> TrainConfig:
    """The checked configuration of a run: `config`, or else what `base_config` starts from, with `changes` applied.

    A group of options takes a dict of its own fields. `UserError` as in `updated` and `checked`.
    """
    if config is None:
        config = base_config(changes.get("preset"), changes.get("resume"), changes.get("out"))
    config = checked(updated(config, changes))
    endless = config.epochs is None and config.steps is None and config.minutes is None
    return replace(config, epochs=DEFAULT_EPOCHS) if endless else config


def base_config(
    preset: str | None, resume: str | None, out: str | None, default: Callable[[], str] = lambda: TrainConfig.preset
) -> TrainConfig:
    """The settings of the run that `resume` continues, or of a preset: `preset`, or `default()` if it is None.

    `UserError` for an unknown preset, and for another one than that of the run.
    """
    where = out if resume == "auto" else resume
    stored = stored_settings(str(where)) if where else None
    if stored is None:
        return preset_config(default() if preset is None else preset)
    own = stored.get("preset", TrainConfig.preset)
    if preset not in (None, own):
        raise UserError(f"{where} was trained with preset {own}: leave --preset out, or start another run with --out")
    return updated(preset_config(own), stored, str(where))


def stored_settings(where: str) -> dict[str, Any] | None:
    """The settings of the run at `where`, its folder or one of its checkpoints, by dotted name; None if it has none.

    The path of its data is absolute. `UserError` for a damaged file.
    """
    for path in _candidates(Path(where)):
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
            stored: Any = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
            if not isinstance(stored, Mapping):
                raise ValueError(f"it holds {stored!r:.40}")
            settings = known_options(stored["config"] if path.suffix == ".json" else stored)
        except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
            raise UserError(f"{path} has no settings that can be read ({error}); name another checkpoint") from error
        data = stored.get("data")
        if path.suffix == ".json" and data:
            settings["data"] = data["path"]
        return {name: value for name, value in settings.items() if name not in OF_ONE_CALL}
    return None


def _candidates(where: Path) -> Iterator[Path]:
    """A checkpoint's own file, the run's file, and the files of a run's checkpoints, newest first."""
    yield where / "state.json"
    yield where / "config.yaml"
    yield from sorted(where.glob("checkpoints/step-*/state.json"), reverse=True)
    yield from sorted(where.glob("step-*/state.json"), reverse=True)
