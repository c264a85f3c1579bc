"""Options by dotted name, e.g. `model.latent_dim`: their types and ranges, and how values become a `TrainConfig`."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from os import PathLike, fspath
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from aime_fast.config.schema import PRESETS, ModelConfig, TrainConfig, to_dict
from aime_fast.errors import UserError

HELP = "`aime-fast train --help` lists all options"


@cache
def options() -> dict[str, Any]:
    """The type of every option by its dotted name, in the order of the schema."""
    return dict(_leaves(TrainConfig, ""))


def preset_config(name: str) -> TrainConfig:
    """The configuration of a preset, one of `PRESETS`; `UserError` for another name."""
    if name not in PRESETS:
        raise UserError(complaint("preset", name))
    values = yaml.safe_load((Path(__file__).parent / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
    return updated(TrainConfig(), {**(values or {}), "preset": name})


def updated(config: TrainConfig, changes: Mapping[str, Any], source: str = "") -> TrainConfig:
    """`config` with the nested `changes`. `source` is the file they come from, for messages.

    Dashes in names count as underscores. `UserError` for an unknown name, and for a value of another type or outside
    its range.
    """
    where = f"{source}: " if source else ""
    groups: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in _flat(changes, ""):
        if name not in options():
            raise UserError(f"{where}unknown option {name!r}{nearest(name, options())}; {HELP}")
        group, _, leaf = name.rpartition(".")
        try:
            groups[group][leaf] = _adapter(name).validate_python(value, strict=True)
        except ValidationError as error:
            raise UserError(where + complaint(name, value)) from error
    top = groups.pop("", {})
    return replace(config, **top, **{name: replace(getattr(config, name), **leaves) for name, leaves in groups.items()})


def known_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted name, without those that no option has: an older version may have had them."""
    return {name: value for name, value in _flat(stored, "") if name in options()}


def checked(config: TrainConfig) -> TrainConfig:
    """`config`, if every option is in its range and the sizes fit together; else `UserError`."""
    config = updated(config, to_dict(config))
    model, loader, optim = config.model, config.loader, config.optim
    for whole, value, part, divisor in (
        ("model.image_size", model.image_size, "4 * model.grid", 4 * model.grid),
        ("model.perceiver_dim", model.perceiver_dim, "model.perceiver_heads", model.perceiver_heads),
        ("loader.batch_size", loader.batch_size, "optim.accumulation", optim.accumulation),
    ):
        if value % divisor:
            raise UserError(f"{whole} must be a multiple of {part} ({divisor}), not {value}")
    return config


def with_data_sizes(config: TrainConfig, action_dim: int, image_size: int, data: str) -> TrainConfig:
    """The configuration with the sizes of the data filled in; `UserError` if it names other sizes."""
    for name, size in (("action_dim", action_dim), ("image_size", image_size)):
        if getattr(config.model, name) not in (getattr(ModelConfig, name), size):
            raise UserError(
                f"model.{name} is {getattr(config.model, name)}, but {data} has {size}; "
                f"leave model.{name} out or set it to {size}"
            )
    return checked(replace(config, model=replace(config.model, action_dim=action_dim, image_size=image_size)))


def complaint(name: str, value: object, prefix: str = "") -> str:
    """`steps must be an integer of at least 1, not 0`; for a choice also the nearest one."""
    choices = [str(c) for part in _alternatives(options()[name]) if get_origin(part) is Literal for c in get_args(part)]
    return f"{prefix}{name} must be {wording(name)}, not {value!r}{nearest(str(value), choices)}"


def wording(name: str) -> str:
    """The values that an option takes: `an integer of at least 1`, `one of auto, on, off`."""
    words = []
    for part in _alternatives(options()[name]):
        if get_origin(part) is Literal:
            words.append(f"one of {', '.join(map(str, get_args(part)))}")
        elif part is not NoneType:
            words.append({str: "a text", bool: "true or false"}.get(part) or part.__metadata__[-1])
    return " or ".join(words)


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean ...?` with the option of the same last part, or else the most similar one; '' for none."""
    names, leaf = list(known), name.rpartition(".")[2]
    same_leaf = [other for other in names if other.rpartition(".")[2] == leaf]
    inside = [other for other in names if other.startswith(name + ".")]
    near = same_leaf or inside or get_close_matches(name, names, n=1, cutoff=0.7)
    return f", did you mean {near[0]}?" if near else ""


def _leaves(owner: type[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, annotation in get_type_hints(owner, include_extras=True).items():
        if is_dataclass(annotation):
            yield from _leaves(annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, annotation


@cache
def _adapter(name: str) -> TypeAdapter:
    return TypeAdapter(options()[name])


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _flat(nested: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """{'model': {'grid': 8}} as ('model.grid', 8)."""
    for key, value in nested.items():
        name = prefix + str(key).replace("-", "_")
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping):
            yield from _flat(value, name + ".")
        else:
            yield name, fspath(value) if isinstance(value, PathLike) else value
