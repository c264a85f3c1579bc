"""The kernels of a compiled step, from those of the step as written and by a stated rule: nothing is compiled.

Inductor joins calls into loops. Here a loop is a chain of calls that follow each other in the step: each has as many
entries as the chain and reads what the chain made, and a reduction ends the chain. A loop reads what it has not made,
and writes what others read. Products, recurrent networks and this project's kernels stay as they are.

Inductor itself also joins calls that stand apart, cuts some that stand together, and computes cheap results again
instead of keeping them. docs/plan.md compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from aime_fast.planning.counting import Kernel

LOOP = "loop"
_COMPILED = ("forward", "backward/", "balance")
"""Phases that are compiled, by the beginning of their names."""
_STAYS = ("aime_kernels.", "recurrent", "aten._foreach", "aten._fused", "aten.nonzero", "aten.sort", "aten.topk")
"""Operators that Inductor leaves to a library although they compute no products, by the beginning of their names."""


def compiled(kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """The kernels of the compiled step, given those of the step as written."""
    chains: list[list[Kernel]] = []
    readers: dict[int, set[int]] = {}
    for kernel in kernels:
        if chains and _follows(kernel, chains[-1]):
            chains[-1].append(kernel)
        else:
            chains.append([kernel])
        for part in kernel.reads:
            readers.setdefault(part.storage, set()).add(len(chains) - 1)
    return tuple(_joined(chain, number, readers) for number, chain in enumerate(chains))


def _follows(kernel: Kernel, chain: list[Kernel]) -> bool:
    """Whether a call belongs to the chain before it."""
    last, made = chain[-1], {part.storage for other in chain for part in other.writes}
    same = kernel.phase == last.phase and kernel.entries == last.entries and not last.kept
    return same and _is_loop(kernel) and _is_loop(last) and any(part.storage in made for part in kernel.reads)


def _is_loop(kernel: Kernel) -> bool:
    return kernel.phase.startswith(_COMPILED) and not kernel.flops and not kernel.name.startswith(_STAYS)


def _joined(chain: list[Kernel], number: int, readers: dict[int, set[int]]) -> Kernel:
    """The loop of a chain. readers: the chains that read each storage."""
    if len(chain) == 1:
        return chain[0]
    made, reads, writes = set[int](), list(chain[0].reads), list(chain[0].writes)
    for before, kernel in pairwise(chain):
        made |= {part.storage for part in before.writes}
        reads += [part for part in kernel.reads if part.storage not in made]
        writes += kernel.writes
    needed = [part for part in writes if readers.get(part.storage) != {number}]
    count = 1 + sum(kernel.count - 1 for kernel in chain)
    return replace(
        chain[0], name=LOOP, count=count, reads=tuple(dict.fromkeys(reads)), writes=tuple(dict.fromkeys(needed))
    )
