"""Nests of dataclasses and dicts that hold tensors, such as a step's inputs."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")
Form = tuple[tuple[str, object], ...]
"""What is fixed about a nest: names, shapes and dtypes of its tensors, and all other values."""


def form(nest: object) -> Form:
    """Equal for two nests whose tensors can take each other's numbers."""
    found: list[tuple[str, object]] = []
    for name, member in _members(nest):
        if isinstance(member, Tensor):
            found.append((name, (member.shape, member.dtype, member.device)))
        else:
            found.append((name, form(member) if _has_members(member) else member))
    return tuple(found)


def copied(nest: T) -> T:
    """A nest of the same form with memory of its own."""
    if isinstance(nest, Tensor):
        return cast(T, nest.clone())
    if isinstance(nest, dict):
        return cast(T, {name: copied(member) for name, member in nest.items()})
    if is_dataclass(nest) and not isinstance(nest, type):
        return cast(T, replace(nest, **{name: copied(member) for name, member in _members(nest)}))
    return nest


def copy_tensors(source: object, target: object) -> None:
    """Copy the tensors of `source` into those of `target`, in place; the forms must be equal."""
    pairs = zip(tensors(target), tensors(source), strict=True)
    with torch.no_grad():
        for old, new in pairs:
            old.copy_(new, non_blocking=True)


def tensors(nest: object) -> Iterator[Tensor]:
    """All tensors of a nest, in order."""
    for _, member in _members(nest):
        if isinstance(member, Tensor):
            yield member
        elif _has_members(member):
            yield from tensors(member)


def _has_members(thing: object) -> bool:
    return isinstance(thing, dict) or (is_dataclass(thing) and not isinstance(thing, type))


def _members(nest: object) -> list[tuple[str, object]]:
    if isinstance(nest, dict):
        return list(nest.items())
    assert is_dataclass(nest)
    return [(item.name, getattr(nest, item.name)) for item in fields(nest)]
