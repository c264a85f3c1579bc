"""Measures what training steps cost; prints one line of JSON. Runs in its own process.

    python benchmarks/step_cost.py PRESET BATCH_SIZE STEPS THREADS [COMPILE]

The steps are the trainer's own (`TrainingStep` on the recorded sample, plain engine), after four warm-up steps. COMPILE
is `on` or `off` (default). Reported are:

- CPU seconds per sequence (user plus system time of the process), seconds per step, peak memory, seconds of each phase;
- the time of a step divided by that of its convolutions and matrix products, attention and LSTM included. "Whole"
  counts complete calls, such as copying a bias into the result; "alone" counts the products without that. Every
  second step is profiled; the ratio is the median over pairs of neighbouring steps, which see the same machine load;
- operator calls (views included) of one more step; for compiled steps, profiled calls instead: every event of an
  operator, nested ones included, and every compiled graph;
- with COMPILE on, the time of a compiled step divided by that of a step as written, measured in turn;
- under `samples`, the values of every step that the figures are of.
"""

import json
import sys
import tempfile
import time
from statistics import median

import torch
from measuring import peak_resident_bytes
from torch.utils._python_dispatch import TorchDispatchMode

from aime_fast.training.compile.compilation import uncompiled
from aime_fast.training.run.host_memory import keep_freed_memory
from aime_fast.training.trainer import DMCVBTrainer

PHASES = ("forward", "backward/elbo", "backward/perceiver", "backward/predictive", "balance", "step")
PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "convolution",
    "_convolution",
    "mkldnn_convolution",
    "convolution_backward",
)
FUSED = ("_scaled_dot_product_flash_attention_for_cpu", "mkldnn_rnn_layer")
PRODUCT_KEYS = {
    f"aten::{name}{end}"
    for names, ends in ((PRODUCTS, ("",)), (FUSED, ("", "_backward")))
    for name in names
    for end in ends
}


class OperatorCalls(TorchDispatchMode):
    """Counts calls that reach the dispatcher."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def inside_product(event: torch.autograd.profiler_util.FunctionEvent) -> bool:
    """Whether a product calls this operator: `convolution` is `mkldnn_convolution` underneath."""
    caller = event.cpu_parent
    while caller is not None and caller.name not in PRODUCT_KEYS:
        caller = caller.cpu_parent
    return caller is not None


def measure(preset: str, batch_size: int, steps: int, threads: int, compile: str = "off") -> dict[str, object]:
    """The figures of `steps` steps of a preset."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        loader = {"batch_size": batch_size}
        options = {"out": f"{folder}/run", "threads": threads, "loader": loader, "compile": compile}
        trainer = DMCVBTrainer(preset=preset, steps=4 * steps + 6, **options)
        module = trainer.engine.module
        parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)

        def step(index: int) -> tuple[float, float]:
            inputs = trainer.step.fetch(index)
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.step(inputs, 0.5)
            return time.perf_counter() - wall, (time.process_time() - cpu) / batch_size

        def profiled_step(index: int) -> tuple[dict[str, tuple[int, float]], float, float]:
            """Calls and seconds of every operator and phase; seconds of all products, whole and alone."""
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                step(index)
            products = [event for event in profile.events() if event.name in PRODUCT_KEYS]
            whole = sum(event.cpu_time_total for event in products if not inside_product(event)) / 1e6
            alone = sum(event.self_cpu_time_total for event in products) / 1e6
            return {e.key: (e.count, e.cpu_time_total / 1e6) for e in profile.key_averages()}, whole, alone

        first = [step(index)[0] for index in range(4)]
        peak = peak_resident_bytes()
        pairs = [(step(index), profiled_step(index + 1)) for index in range(4, 2 * steps + 4, 2)]
        walls, costs = zip(*(times for times, _ in pairs), strict=True)
        events = pairs[-1][1][0]
        over, over_alone = (median(wall / seen[kind] for (wall, _), seen in pairs) for kind in (1, 2))
        samples = {"seconds": walls, "cpu_seconds": costs, "products": [seen[1] for _, seen in pairs]}
        calls = over_written = None  # the dispatcher's mode and a compiled graph exclude each other
        done = 2 * steps + 4
        if compile == "off":
            with OperatorCalls() as counted:
                step(done)
            calls = counted.count
        else:
            as_written = uncompiled()(step)
            as_written(done)
            turns = [(step(index)[0], as_written(index + 1)[0]) for index in range(done + 1, done + 1 + 2 * steps, 2)]
            samples["compiled"], samples["as_written"] = zip(*turns, strict=True)
            over_written = round(median(turn[0] for turn in turns) / median(turn[1] for turn in turns), 2)
        return {
            "preset": preset,
            "batch_size": batch_size,
            "threads": threads,
            "compile": compile,
            "parameters": parameters,
            "first_step_seconds": round(first[0], 1),
            "cpu_seconds_a_sequence": [round(f(costs), 3) for f in (min, median, max)],
            "seconds_a_step": [round(f(walls), 3) for f in (min, median, max)],
            "step_over_products": round(over, 3),
            "step_over_products_alone": round(over_alone, 3),
            "compiled_over_as_written": over_written,
            "operator_calls": calls,
            "profiled_calls": sum(n for key, (n, _) in events.items() if "::" in key or "CompiledFxGraph" in key),
            "peak_memory_gb": round(peak / 1e9, 2),
            "samples": samples,
            "phases_seconds": {name: round(events.get(name, (0, 0.0))[1], 3) for name in PHASES},
        }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:6])))
