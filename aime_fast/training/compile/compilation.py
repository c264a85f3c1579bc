"""`torch.compile` of the training step, region by region.

A region is a method that the backward pass of one task crosses as a whole. The backward pass of a compiled region
computes all its gradients, needed or not. With one region around the whole step, the backward pass of each task would
cost as much as those of all tasks; so parts that only some tasks reach are regions of their own. Code between regions
(the LSTM, which already is a fused operator, and a few copies) runs as written.

Objects declare their regions: a class attribute `compiled` names the methods, `compile_options` their inductor options.
A new part, prior, task or solver needs no change here. Each region is compiled without graph breaks, for one shape.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch._dynamo.callback import callback_handler
from torch._functorch import config as functorch_config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from aime_fast.errors import UserError
from aime_kernels.native import compiler


class Compilation:
    """Replaces the declared regions of `owners` by compiled ones, and reports what compiling costs.

    Only methods of the given objects change, not their classes, parameters or state. `UserError` if the device is a
    CPU and there is no C++ compiler.
    """

    def __init__(self, owners: Iterable[object], device: torch.device) -> None:
        if device.type == "cpu" and compiler() is None:
            looked_for = os.environ.get("CXX") or "g++ or clang++"
            raise UserError(f"--compile on needs a C++ compiler ({looked_for}); install g++, or use --compile off")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder())
        # Otherwise the first of several backward passes over one graph may overwrite what the next one reads.
        functorch_config.donated_buffer = False
        self.graphs = 0
        """Graphs compiled so far."""
        self.on_graph: Callable[[], None] = lambda: None
        """Called after each graph: compiling can take longer than the watchdog allows for a step."""
        self._reported, self._seconds, self._started = 0, 0.0, 0.0
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)
        self.regions = sum(compile_regions(owner) for owner in owners)
        """Number of regions."""

    def _start(self, _: object) -> None:
        self._started = time.perf_counter()

    def _end(self, _: object) -> None:
        self.graphs += 1
        self._seconds += time.perf_counter() - self._started
        self.on_graph()

    def take_message(self) -> str | None:
        """What was compiled since the last call, or None."""
        if self.graphs == self._reported:
            return None
        again = "again " if self._reported else ""
        new = self.graphs - self._reported
        message = f"compiled {new} graphs {again}in {self._seconds:.1f} s; cached in {cache_folder()}"
        self._reported, self._seconds = self.graphs, 0.0
        return message

    def close(self) -> None:
        """Stop counting."""
        callback_handler.remove_start_callback(self._start)
        callback_handler.remove_end_callback(self._end)


def compile_regions(owner: object) -> int:
    """Replace the methods that `owner` declares as regions by compiled ones; return their number."""
    names: tuple[str, ...] = getattr(owner, "compiled", ())
    options = getattr(owner, "compile_options", None) or None
    for name in names:
        setattr(owner, name, torch.compile(getattr(owner, name), fullgraph=True, dynamic=False, options=options))
    return len(names)


def wanted(choice: str, device: torch.device) -> bool:
    """Whether `--compile` with the value `choice` compiles on this device.

    `auto` compiles on a GPU only: on a CPU, convolutions and matrix products take most of a step, and a run of some
    minutes does not recover the compile time (docs/performance.md).
    """
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def uncompiled() -> AbstractContextManager[None]:
    """A context in which regions run as written: validation has other shapes, which are not worth compiling."""
    return torch.compiler.set_stance("force_eager")


def cache_folder() -> Path:
    """Where compiled code is kept between processes and reboots.

    `TORCHINDUCTOR_CACHE_DIR`, or a folder of the user's cache if that is unset or torch's default under /tmp.
    """
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "aime_fast" / "compiled" if given in (None, default_cache_dir()) else Path(given)
