"""What training steps cost, as one line of JSON; a process of its own.

    python benchmarks/step_cost.py PRESET BATCH_SIZE STEPS THREADS [COMPILE]

CPU seconds a sequence, seconds a step, peak memory, the phases, operator calls, and a step's time over that of its
convolutions and matrix products (attention and the LSTM are among these). The steps are the trainer's own
(`TrainingStep` on the recorded sample, plain engine) after two of warm-up, COMPILE is on or off [off]. CPU seconds are
user plus system time of the whole process; phases and products come from profiles of three more steps, operator calls
(views and all) from a count of one. Compiled steps are also timed against steps as written, in turn. Profiled calls are
another measure, that compiled steps have too: every event of an operator, those that it calls itself included, and
every compiled graph.
"""

import json
import resource
import sys
import tempfile
import time
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aime_fast.training.compilation import uncompiled
from aime_fast.training.host_memory import keep_freed_memory
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


def measure(preset: str, batch_size: int, steps: int, threads: int, compile: str = "off") -> dict[str, object]:
    """The figures of `steps` steps of a preset."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        loader = {"batch_size": batch_size}
        options = {"out": f"{folder}/run", "threads": threads, "loader": loader, "compile": compile}
        trainer = DMCVBTrainer(preset=preset, steps=3 * steps + 7, **options)
        module = trainer.engine.module
        parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)

        def step(index: int) -> tuple[float, float]:
            inputs = trainer.step.fetch(index)
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.step(inputs, 0.5)
            return time.perf_counter() - wall, (time.process_time() - cpu) / batch_size

        first = [step(index)[0] for index in range(2)]
        walls, costs = zip(*(step(2 + index) for index in range(steps)), strict=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        profiles = []
        for index in range(3):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                step(steps + 2 + index)
            profiles.append(profile.key_averages())
        products = median(sum(e.self_cpu_time_total for e in events if e.key in PRODUCT_KEYS) for events in profiles)
        spent = {event.key: event.cpu_time_total / 1e6 for event in profiles[-1]}
        calls = over_written = None  # the dispatcher's mode and a compiled graph exclude each other
        if compile == "off":
            with OperatorCalls() as counted:
                step(steps + 5)
            calls = counted.count
        else:
            as_written = uncompiled()(step)
            as_written(steps + 5)
            pairs = [(step(index)[0], as_written(index + 1)[0]) for index in range(steps + 6, 3 * steps + 6, 2)]
            over_written = round(median(pair[0] for pair in pairs) / median(pair[1] for pair in pairs), 2)
        return {
            "preset": preset,
            "batch_size": batch_size,
            "threads": threads,
            "compile": compile,
            "parameters": parameters,
            "first_step_seconds": round(first[0], 1),
            "cpu_seconds_a_sequence": [round(f(costs), 3) for f in (min, median, max)],
            "seconds_a_step": [round(f(walls), 3) for f in (min, median, max)],
            "step_over_products": round(median(walls) / (products / 1e6), 2),
            "compiled_over_as_written": over_written,
            "operator_calls": calls,
            "profiled_calls": sum(e.count for e in profiles[-1] if "::" in e.key or "CompiledFxGraph" in e.key),
            "peak_memory_gb": round(peak / 1e9, 2),
            "phases_seconds": {name: round(spent.get(name, 0.0), 3) for name in PHASES},
        }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:6])))
