"""The launches of a step, counted without a GPU.

A launch is a call of an operator that reads or writes memory: views and allocations are free. On a GPU each such call
starts at least one kernel, and costs the host some microseconds.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from aime_kernels.dispatch import assumed_device

FREE = ("aten.empty", "aten.new_empty", "aten.detach", "aten.alias", "aten._unsafe_view", "aten.promote_types")
"""Operators that start no kernel although they are no views, by the beginning of their names."""
_ONE_ON_A_GPU = (torch.lstm, torch.gru_cell)
"""One operator on a GPU, many on a CPU."""


class Launches(TorchDispatchMode):
    """Counts launches by phase, the innermost `record_function` range that is open."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        """Launches by phase and operator."""
        self.hidden = False
        """While true nothing is counted."""
        self._phases = ["elsewhere"]

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        name = str(function)
        if self.hidden:
            return function(*args, **(kwargs or {}))
        if name.startswith("profiler."):
            if "_enter" in name:
                self._phases.append(args[0])
            elif "_exit" in name:
                self._phases.pop()
            return function(*args, **(kwargs or {}))
        if not function.is_view and not name.startswith(FREE):
            self.add(name)
        return function(*args, **(kwargs or {}))

    def add(self, name: str, count: int = 1) -> None:
        """Count launches in the phase that is open."""
        self.counts[self._phases[-1], name] += count

    def graph(self, kernels: Mapping[str, int], run: Callable[[], Any]) -> Any:
        """Run a compiled graph and count its kernels, by name, instead of the operators that it calls."""
        for name, count in kernels.items():
            self.add(f"compiled {name}", count)
        with _hidden(self):
            return run()

    @property
    def phase(self) -> str:
        """The innermost phase that is open."""
        return self._phases[-1]

    def by_phase(self) -> dict[str, int]:
        """Launches of each phase, most first."""
        phases: Counter[str] = Counter()
        for (phase, _), count in self.counts.items():
            phases[phase] += count
        return dict(phases.most_common())


@contextmanager
def gpu_routes() -> Iterator[None]:
    """What runs or is compiled inside takes a GPU's routes. Kernels of `aime_kernels` are not run: they give zeros."""
    with ExitStack() as stack:
        stack.enter_context(assumed_device("cuda"))
        for operator in [op for name, op in OPDEFS.items() if name.startswith("aime_kernels::")]:
            stack.enter_context(mock.patch.dict(operator._backend_fns, {None: _stand_in(operator)}))
        yield


def _stand_in(operator: Any) -> Callable[..., Any]:
    return lambda *args: _zeros(operator._abstract_fn(*args))


@contextmanager
def counted_launches() -> Iterator[Launches]:
    """Counts what runs inside as a GPU would run it: its routes, each kernel, LSTM and GRU cell as one operator."""
    with gpu_routes(), Launches() as launches, _OneOperator(launches):
        yield launches


def without_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` called as if nothing counted: compiled code would be compiled again under a counting mode."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes(), _pop_mode_temporarily():
            return function(*args, **kwargs)

    return call


class _OneOperator(TorchFunctionMode):
    """Counts a recurrent network as one launch forward and one backward."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if function not in _ONE_ON_A_GPU:
            return function(*args, **(kwargs or {}))
        tensors = [x for x in _flat(args) if isinstance(x, Tensor)]
        return _Opaque.apply(self.launches, lambda: function(*args, **(kwargs or {})), *tensors)


class _Opaque(torch.autograd.Function):
    """Calls a function; hides what it calls, forward and backward."""

    @staticmethod
    def forward(ctx: Any, launches: Launches, call: Callable[[], object], *tensors: Tensor) -> object:
        with _hidden(launches), torch.no_grad():
            outputs = call()
        launches.add("recurrent")
        ctx.set_materialize_grads(False)
        ctx.launches, ctx.tensors = launches, tensors
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.launches.add("recurrent_backward")
        with _hidden(ctx.launches):
            wanted = [torch.zeros_like(x) if x.requires_grad else None for x in ctx.tensors]
        return None, None, *wanted


@contextmanager
def _hidden(launches: Launches) -> Iterator[None]:
    launches.hidden = True
    try:
        yield
    finally:
        launches.hidden = False


def _flat(nest: object) -> Iterator[object]:
    if isinstance(nest, tuple | list):
        for inner in nest:
            yield from _flat(inner)
    else:
        yield nest


def _zeros(made: Any) -> Any:
    for tensor in _flat(made):
        if isinstance(tensor, Tensor):
            tensor.zero_()
    return made
