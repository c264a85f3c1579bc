"""The launches of compiled code, counted where Inductor has cut a graph into kernels.

Inductor fuses the operators of a graph into nodes. A GPU gets one kernel for each: a loop that Inductor generates, or
an operator of a library. The schedule of a CPU differs in two ways, which are put right here. It keeps a reduction and
what follows apart within one loop over rows, where a GPU has one kernel for both: such loops count once. And it copies
the parts of a concatenation one by one, where a GPU takes one kernel. Otherwise fusion follows the same rules on both.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._inductor import ir
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode, Scheduler
from torch._inductor.virtualized import V

Kernels = Counter[str]
"""The kernels of a graph by name: an operator of a library, or `loop` for what Inductor generates."""


@contextmanager
def counted_graphs(on_call: Callable[[Kernels, Callable[[], Any]], Any]) -> Iterator[list[Kernels]]:
    """Counts the kernels of every graph that is compiled inside; yields the counts in the order of compilation.

    on_call: called instead of each run of such a graph, with its kernels and the run itself; returns what this returns.
    Loops are neither compiled to machine code nor run: their results are zeros. Caches are off.
    """
    found: list[Kernels] = []
    codegen, make, run = Scheduler.codegen, CompiledFxGraph.__init__, CompiledFxGraph.__call__

    def count(scheduler: Scheduler) -> None:
        graph: Any = V.graph
        graph.launches = Counter(kernels(scheduler.nodes))
        found.append(graph.launches)
        codegen(scheduler)

    def keep(self: Any, current_callable: Any, graph: Any, *rest: Any, **more: Any) -> None:
        make(self, current_callable, graph, *rest, **more)
        self.launches = graph.launches

    def call(self: Any, inputs: Sequence[Any]) -> Any:
        return on_call(self.launches, lambda: run(self, inputs))

    with (
        torch._inductor.config.patch(force_disable_caches=True),
        mock.patch.object(Scheduler, "codegen", count),
        mock.patch.object(CompiledFxGraph, "__init__", keep),
        mock.patch.object(CompiledFxGraph, "__call__", call),
        mock.patch.object(AsyncCompile, "cpp_pybinding", _stand_in),
    ):
        yield found


def _stand_in(_: AsyncCompile, kinds: Sequence[str], source: str) -> Callable[..., None]:
    """A function in place of a compiled one; it sets its results to zero. `kinds`: the C types of its arguments."""

    def call(*arguments: Any) -> None:
        for kind, argument in zip(kinds, arguments, strict=True):
            if kind.endswith("*") and not kind.startswith("const"):
                argument.zero_()

    return call


def kernels(nodes: Sequence[Any]) -> Iterator[str]:
    """Names of the kernels that a GPU would start for the nodes of a schedule."""
    joined: set[str] = set()
    for node in nodes:
        if isinstance(node, ExternKernelSchedulerNode):
            operator: Any = node.node
            if not isinstance(operator, ir.MultiOutput):
                yield operator.get_kernel_name() or type(operator).__name__
        elif not isinstance(node, NopKernelSchedulerNode):
            whole = _concatenation(node)
            if whole not in joined:
                yield "loop"
            joined |= {whole} if whole else set()


def _concatenation(node: Any) -> str | None:
    """The name of the tensor of which a node writes a part, or None."""
    layout = getattr(node.node, "layout", None)
    return layout.view.get_name() if isinstance(layout, ir.NonOwningLayout) else None
