"""The launches of compiled code, counted where Inductor has cut a graph into kernels.

Inductor fuses the operators of a graph into nodes. A GPU gets one kernel for each node: a loop that it generates, or
a library's operator. On a CPU it then joins loops into fewer functions, so the nodes are counted, not those functions.
Fusion follows nearly the same rules on both devices; the number is therefore that of a GPU but for a few per cent.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._inductor import ir
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode, Scheduler
from torch._inductor.virtualized import V


@contextmanager
def counted_graphs(on_call: Callable[[int, Callable[[], Any]], Any]) -> Iterator[list[int]]:
    """Counts the kernels of every graph that is compiled inside; yields the counts in the order of compilation.

    on_call: called instead of each run of such a graph, with its kernels and the run itself; returns what this returns.
    Graphs from a cache are not counted, so caches are off.
    """
    found: list[int] = []
    codegen, make, run = Scheduler.codegen, CompiledFxGraph.__init__, CompiledFxGraph.__call__

    def count(scheduler: Scheduler) -> None:
        V.graph.launches = kernels(scheduler.nodes)
        found.append(V.graph.launches)
        codegen(scheduler)

    def keep(self: Any, current_callable: Any, graph: Any, *rest: Any, **more: Any) -> None:
        make(self, current_callable, graph, *rest, **more)
        self.launches = getattr(graph, "launches", 0)

    def call(self: Any, inputs: Sequence[Any]) -> Any:
        return on_call(getattr(self, "launches", 0), lambda: run(self, inputs))

    with (
        torch._inductor.config.patch(force_disable_caches=True),
        mock.patch.object(Scheduler, "codegen", count),
        mock.patch.object(CompiledFxGraph, "__init__", keep),
        mock.patch.object(CompiledFxGraph, "__call__", call),
    ):
        yield found


def kernels(nodes: Sequence[Any]) -> int:
    """Kernels that a GPU would start for the nodes of a schedule."""
    return sum(_kernels_of(node) for node in nodes)


def _kernels_of(node: Any) -> int:
    if isinstance(node, NopKernelSchedulerNode):
        return 0
    if isinstance(node, ExternKernelSchedulerNode):
        return 0 if isinstance(node.node, ir.MultiOutput) else 1
    if hasattr(node, "get_outer_nodes"):  # loops that a CPU runs as one
        return kernels(node.get_outer_nodes())
    return 1
