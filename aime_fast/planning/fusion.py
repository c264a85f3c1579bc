"""The kernels of a compiled step, from those of the step as written and by a stated rule: nothing is compiled.

Inductor joins calls into loops. Here a call joins a loop if one of these has the same entries: the latest loop or
product that it needs, or a later loop that reads one of its tensors. A loop has entries of one number, and of the
results of its reductions; all its reductions must keep equally many. A loop reads what it has not made, and writes what
others read. Products, recurrent networks and this project's kernels stay as they are.

What Inductor does besides is left out: it computes cheap results again instead of keeping them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from aime_fast.planning.counting import Kernel

_COMPILED = ("forward", "backward/")
"""Phases that are compiled, by the beginning of their names; the rest of a step is a few long kernels."""
_STAYS = ("aime_kernels.", "recurrent", "aten._foreach", "aten._fused", "aten.nonzero", "aten.sort", "aten.topk")
LOOP = "loop"


@dataclass
class _Group:
    """One loop of a compiled step, or one call that stays as it is."""

    phase: str
    is_loop: bool
    kernels: list[Kernel] = field(default_factory=list)
    entries: set[int] = field(default_factory=set)
    kept: int = 0
    """Entries of the results of its reductions; 0 without any."""

    def takes(self, kernel: Kernel) -> bool:
        if not self.is_loop or kernel.phase != self.phase or kernel.entries not in self.entries:
            return False
        return not (kernel.kept and self.kept and kernel.entries == max(self.entries) and kernel.kept != self.kept)

    def add(self, kernel: Kernel) -> None:
        self.kernels.append(kernel)
        self.entries |= {kernel.entries, kernel.kept} if kernel.kept else {kernel.entries}
        self.kept = self.kept or kernel.kept


def compiled(kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """The kernels of the compiled step, given those of the step as written."""
    groups: list[_Group] = []
    makers: dict[int, int] = {}
    readers: dict[int, set[int]] = {}
    for kernel in kernels:
        number = _place(kernel, groups, makers, readers)
        groups[number].add(kernel)
        makers |= dict.fromkeys((part.storage for part in kernel.writes), number)
        for part in kernel.reads:
            readers.setdefault(part.storage, set()).add(number)
    return tuple(_joined(group, number, readers) for number, group in enumerate(groups))


def _place(kernel: Kernel, groups: list[_Group], makers: dict[int, int], readers: dict[int, set[int]]) -> int:
    """The number of the group of a kernel, which may be a new one. Groups need only groups before them."""
    is_loop = kernel.phase.startswith(_COMPILED) and not kernel.flops and not kernel.name.startswith(_STAYS)
    if is_loop:
        needed = {makers[part.storage] for part in kernel.reads if part.storage in makers}
        for part in kernel.writes:  # what it overwrites must have been read
            needed |= readers.get(part.storage, set())
        latest = max(needed, default=-1)
        beside = {number for part in kernel.reads for number in readers.get(part.storage, ()) if number > latest}
        for number in (latest, *sorted(beside, reverse=True)):
            if number >= 0 and groups[number].takes(kernel):
                return number
    groups.append(_Group(kernel.phase, is_loop))
    return len(groups) - 1


def _joined(group: _Group, number: int, readers: dict[int, set[int]]) -> Kernel:
    first = group.kernels[0]
    if not group.is_loop or len(group.kernels) == 1:
        return first
    made, reads, writes = set[int](), dict.fromkeys(()), dict.fromkeys(())
    for kernel in group.kernels:
        reads |= dict.fromkeys(part for part in kernel.reads if part.storage not in made)
        writes |= dict.fromkeys(part for part in kernel.writes if readers.get(part.storage) != {number})
        made |= {part.storage for part in kernel.writes}
    count = 1 + sum(max(0, kernel.count - 1) for kernel in group.kernels)
    return replace(first, name=LOOP, count=count, reads=tuple(reads), writes=tuple(writes))
