"""Replaces what a part of the model computes, for the time of a context, without touching the model's code."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

from torch import nn

Original = Callable[..., object]
Around = Callable[[Original, dict[str, object]], object]
"""Called instead of a part's `forward`, with `forward` and its arguments by name; its result is the part's."""


@contextmanager
def replaced(module: nn.Module, around: Around) -> Iterator[None]:
    """Inside the context `module(...)` gives `around(forward, arguments)`."""
    original = module.forward
    signature, before = inspect.signature(original), module.__dict__.get("forward")

    @wraps(original)  # also for the signature: replacements nest
    def forward(*args: object, **kwargs: object) -> object:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return around(original, dict(bound.arguments))

    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


def readers(model: nn.Module, argument: str) -> list[nn.Module]:
    """The parts of the model whose `forward` has this argument."""
    return [part for part in model.children() if argument in inspect.signature(part.forward).parameters]


def with_argument(name: str, change: Callable[[object], object]) -> Around:
    """An `Around` that changes one argument."""

    def around(original: Original, arguments: dict[str, object]) -> object:
        return original(**{**arguments, name: change(arguments[name])})

    return around


def with_result(change: Callable[[object], object]) -> Around:
    """An `Around` that changes the result."""
    return lambda original, arguments: change(original(**arguments))
