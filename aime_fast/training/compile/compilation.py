"""`torch.compile` of the training step, a part of the model at a time.

A region is a part that one task's backward pass crosses as a whole. A compiled region's backward pass computes all
its gradients, wanted or not, so one region around everything would make each of the three backward passes as long as
all of them; parts that only some tasks reach are regions of their own. What lies between regions (the LSTM, which has
a fused operator already, and a few copies) runs as without compilation. Every region compiles whole, for one shape.
"""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.callback import callback_handler
from torch._functorch import config as functorch_config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from aime_fast.balancing.balancer import Balancer
from aime_fast.errors import UserError
from aime_fast.tasks.aggregator import LossAggregator
from aime_kernels.native import compiler

PARTS = {
    "": ("standardise",),
    "tokenizer": ("forward",),
    "perceiver": ("forward", "next_frame_logits"),
    "trunk": ("forward",),
    "teacher": ("forward",),
    "posterior": ("forward",),
    "attention": ("forward",),
    "predictor": ("forward",),
    "prior": ("forward",),
    "attention_prior": ("forward",),
    "decoder": ("forward",),
}
"""Regions of the model: a submodule's name (none for the model itself), and which of its methods."""
PASSES, DECISION = ("_gram", "_combine"), "_decide"
"""Regions of the layout (the two passes over the gradients) and of the balancer (the small problem between them)."""


class Compilation:
    """The compiled regions of a model, an aggregator and a balancer, and what compiling them costs.

    Replaces the methods on the objects given; their classes, parameters and state stay as they are.

    Raises:
        UserError: no C++ compiler, which a CPU's code needs.
    """

    def __init__(self, model: nn.Module, aggregator: LossAggregator, balancer: Balancer, device: torch.device) -> None:
        if device.type == "cpu" and compiler() is None:
            looked_for = os.environ.get("CXX") or "g++ or clang++"
            raise UserError(f"--compile on needs a C++ compiler ({looked_for}); install g++, or leave it")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder())
        # Else the first of several backward passes over one graph may write over what the next one reads.
        functorch_config.donated_buffer = False
        self.graphs = 0
        """Graphs compiled so far."""
        self.compiled_one: Callable[[], None] = lambda: None
        """Called after each: compiling takes longer than the watchdog gives a step."""
        self._told, self._seconds, self._started = 0, 0.0, 0.0
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)
        for name, methods in PARTS.items():
            for method in methods:
                compile_method(model.get_submodule(name), method)
        for task in aggregator.tasks:
            compile_method(task, "terms", options=task.compile_options)
        for method in PASSES:
            compile_method(balancer.layout, method)
        compile_method(balancer, DECISION)

    def _start(self, _: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, _: Any) -> None:
        self.graphs += 1
        self._seconds += time.perf_counter() - self._started
        self.compiled_one()

    def news(self) -> str | None:
        """What was compiled since the last call, in words; None where nothing was."""
        if self.graphs == self._told:
            return None
        again = "again " if self._told else ""
        line = f"compiled {self.graphs - self._told} graphs {again}in {self._seconds:.1f} s; kept in {cache_folder()}"
        self._told, self._seconds = self.graphs, 0.0
        return line

    def close(self) -> None:
        """Stop counting."""
        callback_handler.remove_start_callback(self._start)
        callback_handler.remove_end_callback(self._end)


def wanted(choice: str, device: torch.device) -> bool:
    """Whether `--compile` with this word compiles on this device.

    `auto` does on a GPU only: on a CPU convolutions and products take most of a step, and a run of some minutes does
    not win back what compiling costs (docs/performance.md).
    """
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def compile_method(owner: Any, name: str, options: dict[str, Any] | None = None) -> None:
    """Replace a method of one object by its compiled form: no graph break allowed, for one shape."""
    method: Callable[..., Any] = getattr(owner, name)
    setattr(owner, name, torch.compile(method, fullgraph=True, dynamic=False, options=options))


def uncompiled() -> AbstractContextManager[None]:
    """While this is open, regions run as written: validation has other shapes, each worth no compilation."""
    return torch.compiler.set_stance("force_eager")


def cache_folder() -> Path:
    """Where compiled code outlives the process and the next start of the machine.

    `TORCHINDUCTOR_CACHE_DIR`, or where that is unset or torch's own choice under /tmp, a folder of the user's cache.
    """
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "aime_fast" / "compiled" if given in (None, default_cache_dir()) else Path(given)
