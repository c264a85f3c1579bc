"""`torch.compile` of the training step, region by region.

A region is a method that the backward passes of the same tasks cross. The backward pass of a compiled region computes
all its gradients, needed or not. With one region around the whole step, the backward pass of each task would cost as
much as those of all tasks; so what only some tasks reach is a region of its own, unless its gradients cost little.
Code between regions (the LSTM, which already is a fused operator, and a few copies) runs
as written.

Objects declare their regions: a class attribute `compiled` names the methods, `compile_options` their inductor options,
and `compiled_gradients` says whether backward passes cross them. A new task or solver needs no change here. Each region
is compiled without graph breaks, for one shape. Inductor's timing of kernels is off (`max_autotune` and its relatives,
`triton.autotune_pointwise`), except that it may time a few block sizes of a reduction on a GPU.
"""

import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from aime_fast.errors import UserError
from aime_kernels.native import compiler

TELL_EVERY = 5.0
"""Seconds between two lines while something compiles."""


class Compilation:
    """Replaces the declared regions of `owners`, by name, by compiled ones, and tells how compiling them goes.

    Only methods of the given objects change, not their classes, parameters or state. `UserError` if the device is a
    CPU and there is no C++ compiler.
    """

    def __init__(self, owners: Mapping[str, object], device: torch.device) -> None:
        if device.type == "cpu" and compiler() is None:
            looked_for = os.environ.get("CXX") or "g++ or clang++"
            raise UserError(f"--compile on needs a C++ compiler ({looked_for}); install g++, or use --compile off")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder())
        # Otherwise the first of several backward passes over one graph may overwrite what the next one reads.
        functorch_config.donated_buffer = False
        # Torch's compiler warns of its own code.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\._inductor")
        self.tell: Callable[[str], None] = lambda line: None
        """Gets a line every few seconds while something compiles, from any thread."""
        self.on_graph: Callable[[], None] = lambda: None
        """Called after each graph: compiling can take longer than the watchdog allows for a step."""
        self.owners = {name: owner for name, owner in owners.items() if getattr(owner, "compiled", ())}
        """The objects that have regions."""
        self.graphs = 0
        """Graphs compiled so far."""
        self.regions = self.expected = 0
        """Number of regions; number of graphs, one or two a region: the second has its gradients."""
        for name, owner in self.owners.items():
            self._compile_regions(name, owner)
        self._entered, self._now = "", ""
        self._names: dict[str, str] = {}
        self._reported, self._missed, self._seconds = 0, _misses(), 0.0
        self._started = self._first = self._told = 0.0
        self._teller: threading.Thread | None = None
        self._lock = threading.Lock()
        callback_handler.register_start_callback(self._start)
        callback_handler.register_end_callback(self._end)

    def _compile_regions(self, owner_name: str, owner: Any) -> None:
        """Replace the methods that `owner` declares as regions by compiled ones."""
        options = {"triton.autotune_pointwise": False, **getattr(owner, "compile_options", {})}
        for method in owner.compiled:
            made = torch.compile(getattr(owner, method), fullgraph=True, dynamic=False, options=options)
            setattr(owner, method, self._named(f"{owner_name}.{method.strip('_')}", made))
            self.regions += 1
            self.expected += 2 if getattr(owner, "compiled_gradients", True) else 1

    def _named(self, name: str, region: Callable[..., Any]) -> Callable[..., Any]:
        """`region`, which says its name when it is entered."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._entered = name
            return region(*args, **kwargs)

        return call

    def _start(self, args: CallbackArgs) -> None:
        now = time.monotonic()
        if args.callback_trigger is CallbackTrigger.LAZY_BACKWARD:
            name = f"gradients of {self._names.get(args.compile_id, 'a region')}"
        else:
            name = self._names[args.compile_id] = self._entered
        if self.graphs == self._reported:
            self._first = now
        with self._lock:
            self._now, self._started = name, now
        self._tell()
        if self._teller is None or not self._teller.is_alive():
            self._teller = threading.Thread(target=self._keep_telling, name="compilation", daemon=True)
            self._teller.start()

    def _end(self, _: CallbackArgs) -> None:
        with self._lock:
            self._now = ""
        self.graphs += 1
        self._seconds += time.monotonic() - self._started
        self.on_graph()

    def _keep_telling(self) -> None:
        """Until nothing has been compiled for a while; the next graph starts another thread."""
        idle = 0
        while idle < 2:
            time.sleep(TELL_EVERY / 2)
            idle = 0 if self._tell() else idle + 1

    def _tell(self) -> bool:
        """Tell what is being compiled, at most every few seconds; False if nothing is."""
        with self._lock:
            now, name = time.monotonic(), self._now
            due = bool(name) and now - self._told >= TELL_EVERY
            if due:
                self._told = now
        if due:
            number = self.graphs - self._reported + 1
            of = "" if self._reported else f" of {self.expected}"
            seconds = now - self._first
            self.tell(
                f"compiling {number}{of}: {name} ({seconds:.0f} s so far); kept in {cache_folder()} for next time"
            )
        return bool(name)

    def take_message(self) -> str | None:
        """What was compiled since the last call, or None."""
        if self.graphs == self._reported:
            return None
        new, missed = self.graphs - self._reported, _misses()
        if missed == self._missed:
            message = f"compiled code of {new} graphs, all from {cache_folder()}, in {self._seconds:.1f} s"
        else:
            again = "again " if self._reported else ""
            message = f"compiled {new} graphs {again}in {self._seconds:.1f} s; kept in {cache_folder()}"
        self._reported, self._missed, self._seconds = self.graphs, missed, 0.0
        return message

    def close(self) -> None:
        """Stop counting and telling."""
        callback_handler.remove_start_callback(self._start)
        callback_handler.remove_end_callback(self._end)
        with self._lock:
            self._now = ""


def _misses() -> int:
    """Graphs that no cache had, in this process."""
    return int(counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_bypass"])


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
