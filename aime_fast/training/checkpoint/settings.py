"""Which settings a resumed run may change: those that leave its past true."""

from collections.abc import Iterator
from typing import Any

from aime_fast.errors import UserError

FREE = ("out", "resume", "override", "threads", "ds_config", "backend", "preset", "compile", "cuda_graph")
FREE_GROUPS = ("logging.", "checkpoint_every", "keep_checkpoints")
"""They change where a run goes and what it tells, not what it learns (engine, layout and compiler only by rounding)."""
FIXED = ("seed", "optim.name", "balancing.solver", "balancing.groups")
FIXED_GROUPS = ("model.", "loader.")
"""Weights, moments or the place in the data would no longer mean what they meant: no flag makes that right."""


def check_settings(saved: dict[str, Any], wanted: dict[str, Any], override: bool, where: str) -> str:
    """What a resumed run changes in its settings, in words; empty where nothing that matters changed.

    `UserError` names every change that is not allowed, or that `override` would allow. `where` is the run's folder.
    """
    changed = [name for name, _, _ in _differences(saved, wanted) if not _among(name, FREE, FREE_GROUPS)]
    fixed = [name for name in changed if _among(name, FIXED, FIXED_GROUPS)]
    if fixed:
        raise UserError(
            f"{where} was trained with other settings: {_words(saved, wanted, fixed)}; these cannot change in a run: "
            "give the old ones, or start another run"
        )
    words = _words(saved, wanted, changed)
    if changed and not override:
        raise UserError(
            f"{where} was trained with other settings: {words}; give the old ones (--config RUN/config.yaml has them), "
            "or accept the new ones with --override"
        )
    return words


def changes(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Differing entries of two nested dicts as `name saved -> wanted, ...`; empty where they agree."""
    return ", ".join(f"{name} {old} -> {new}" for name, old, new in _differences(saved, wanted))


def _words(saved: dict[str, Any], wanted: dict[str, Any], names: list[str]) -> str:
    return ", ".join(f"{name} {old} -> {new}" for name, old, new in _differences(saved, wanted) if name in names)


def _among(name: str, names: tuple[str, ...], groups: tuple[str, ...]) -> bool:
    return name in names or name.startswith(groups)


def _differences(saved: dict[str, Any], wanted: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    old, new = _flat(saved), _flat(wanted)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
