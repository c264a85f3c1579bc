"""Counts kernels, FLOPs, bytes and live memory of whatever runs inside, on fake tensors or on real ones."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aime_fast.planning.operators import Shape, kernels_of, product_shapes, runs
from aime_fast.profiling.flops import operations

ELSEWHERE = "elsewhere"


class Part(NamedTuple):
    """What a call reads or writes of a storage."""

    storage: int
    """Its number."""
    offset: int
    """Its first entry."""
    bytes: int


@dataclass(frozen=True)
class Kernel:
    """One call of an operator."""

    phase: str
    """The innermost open range of `record_function`."""
    name: str
    count: int
    """Kernels that the call starts on a GPU, one after the other."""
    flops: float
    reads: tuple[Part, ...]
    writes: tuple[Part, ...]
    dtype: torch.dtype
    shapes: tuple[Shape, ...]
    """Of its products."""
    entries: int
    """Of the largest tensor that it reads or writes."""
    kept: int
    """Entries of its results where they are fewer, as of a reduction; else 0."""

    @property
    def bytes(self) -> int:
        """Read and written, each tensor once."""
        return sum(part.bytes for part in (*self.reads, *self.writes))


class Counting(TorchDispatchMode):
    """Counts calls by phase, and follows every storage from its first sight to its end.

    `live` has the bytes alive after each event; `owner` the storage that began or ended there.
    """

    def __init__(self, on_phase: Callable[[str], None] = lambda name: None) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.events: list[tuple[int, int]] = []
        """(number of a storage, its bytes; negative where it ends)."""
        self.born: list[str] = []
        """For each storage the phase in which it was first seen."""
        self.hidden = False
        """While true no call counts; storages do."""
        self._on_phase = on_phase
        self._phases = [ELSEWHERE]
        self._known: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}

    @property
    def phase(self) -> str:
        """The innermost open range."""
        return self._phases[-1]

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        name = str(function)
        if name.startswith("profiler."):
            if "_enter" in name:
                self._phases.append(args[0])
                self._on_phase(args[0])
            elif "_exit" in name:
                self._phases.pop()
            return function(*args, **kwargs)
        given = list(tensors_of((args, kwargs)))
        results = function(*args, **kwargs)
        made = list(tensors_of(results))
        for tensor in (*given, *made):
            self.number(tensor)
        if not self.hidden and runs(function, name):
            self.add(
                name, float(operations(function, args, kwargs, results)), given, made, product_shapes(function, args)
            )
        return results

    def add(
        self,
        name: str,
        flops: float,
        given: Sequence[Tensor],
        made: Sequence[Tensor],
        shapes: tuple[Shape, ...] = (),
        count: int | None = None,
    ) -> None:
        """Count one call in the phase that is open. count: its kernels, where that is known."""
        dtype = next((t.dtype for t in (*made, *given) if t.dtype.is_floating_point), torch.float32)
        count = kernels_of(name, shapes, [*given, *made]) if count is None else count
        reads, writes = (tuple(map(self._part, tensors)) for tensors in (given, made))
        entries = max((t.numel() for t in (*given, *made)), default=0)
        kept = max((t.numel() for t in made), default=0)
        kept = 0 if kept == entries else kept
        self.kernels.append(Kernel(self.phase, name, count, flops, reads, writes, dtype, shapes, entries, kept))

    def _part(self, tensor: Tensor) -> Part:
        return Part(self.number(tensor), int(tensor.storage_offset()), _bytes(tensor))

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor's storage; the first sight of it is an event."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return self._known[key][0]
        number, size = len(self.born), storage.nbytes()
        self.born.append(self.phase)
        self.events.append((number, size))

        def end(_: object) -> None:
            del self._known[key]
            self.events.append((number, -size))

        self._known[key] = number, weakref.ref(storage, end)
        return number

    def forget_past(self) -> int:
        """Drop calls and events so far; returns the bytes alive, of which each storage becomes one event."""
        self.kernels.clear()
        alive = [(number, ref()) for number, ref in self._known.values()]
        self.events[:] = [(number, storage.nbytes()) for number, storage in alive if storage is not None]
        return sum(size for _, size in self.events)


def tensors_of(nest: object) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping):
        for inner in nest.values():
            yield from tensors_of(inner)
    elif isinstance(nest, list | tuple):
        for inner in nest:
            yield from tensors_of(inner)


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's entries; those that an expanded tensor repeats count once."""
    entries = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        entries *= size if stride else min(size, 1)
    return entries * tensor.element_size()
