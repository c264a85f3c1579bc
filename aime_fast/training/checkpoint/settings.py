"""Which settings a resumed run may change."""

from collections.abc import Iterator, Mapping

from aime_fast.errors import UserError
from aime_fast.training.checkpoint.state import Shared

FREE = ("out", "resume", "override", "threads", "ds_config", "backend", "preset", "compile", "cuda_graph")
FREE_GROUPS = ("logging.", "checkpoint_every", "keep_checkpoints", "refit_steps")
"""Free to change: they decide where a run writes, how fast it is and what follows it; checkpoints change by rounding at
most."""
FIXED = ("seed", "optim.name", "tasks", "balancing.solver", "balancing.groups")
FIXED_GROUPS = ("model.", "loader.")
"""Never to change: the stored weights, moments or position in the data would lose their meaning."""


def check_settings(saved: Mapping[str, object], wanted: Mapping[str, object], override: bool, where: str) -> str:
    """Describe the settings that a resumed run changes; empty if none of importance changed. `where` is its folder.

    Raises `UserError` that lists the changes that are never allowed, or those that need `override`.
    """
    changed = {name: text for name, text in _differences(saved, wanted) if not _among(name, FREE, FREE_GROUPS)}
    fixed = [text for name, text in changed.items() if _among(name, FIXED, FIXED_GROUPS)]
    text, start = ", ".join(fixed or changed.values()), f"{where} was trained with other settings"
    if fixed:
        raise UserError(f"{start}: {text}; these cannot change in a run: use the old ones, or start another run")
    if changed and not override:
        raise UserError(
            f"{start}: {text}; use the old ones (--config RUN/config.yaml has them), or accept the new ones with "
            "--override"
        )
    return text


def comparable(saved: Shared, now: Shared) -> tuple[dict[str, object], dict[str, object]]:
    """Both configurations, in which `data` names equal data equally, wherever they lie and however that is written.

    `actions` is what was assumed, whether it was asked for or found by content.
    """
    old, new = saved.get("data"), now["data"]
    if old is None:  # written before runs recorded their data
        return saved["config"], now["config"]
    same = old["fingerprint"] == new["fingerprint"] and (new["fingerprint"] or old["path"] == new["path"])
    where = f"{new['path']} with other content" if old["path"] == new["path"] else new["path"]
    was, is_now = saved["config"] | {"data": old["path"]}, now["config"] | {"data": old["path"] if same else where}
    meant, means = old.get("actions"), new.get("actions")
    if isinstance(meant, dict) and isinstance(means, dict):  # older versions did not record it
        was["actions"], is_now["actions"] = meant["stored"], means["stored"]
    return was, is_now


def _among(name: str, names: tuple[str, ...], groups: tuple[str, ...]) -> bool:
    return name in names or name.startswith(groups)


def _differences(saved: Mapping[str, object], wanted: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    old, new = _flat(saved), _flat(wanted)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield name, f"{name} {old.get(name)} -> {new.get(name)}"


def _flat(nested: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
