"""CPU seconds a sequence, peak memory and the phases of training steps, as one line of JSON; a process of its own.

    python benchmarks/step_cost.py PRESET BATCH_SIZE STEPS THREADS

The steps are the trainer's own (`TrainingStep` on the recorded sample, plain engine) after two of warm-up. CPU seconds
are user plus system time of the whole process; the phases come from a profile of one more step.
"""

import json
import resource
import sys
import tempfile
import time
from statistics import median

import torch

from aime_fast.training.host_memory import keep_freed_memory
from aime_fast.training.trainer import DMCVBTrainer

PHASES = ("forward", "backward/elbo", "backward/perceiver", "backward/predictive", "balance", "step")


def measure(preset: str, batch_size: int, steps: int, threads: int) -> dict[str, object]:
    """The figures of `steps` steps of a preset."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        loader = {"batch_size": batch_size}
        trainer = DMCVBTrainer(preset=preset, steps=steps + 3, out=f"{folder}/run", threads=threads, loader=loader)
        module = trainer.engine.module
        parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)

        def step(index: int) -> tuple[float, float]:
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.step(trainer.step.fetch(index), 0.5)
            return time.perf_counter() - wall, (time.process_time() - cpu) / batch_size

        for index in range(2):
            step(index)
        walls, costs = zip(*(step(2 + index) for index in range(steps)), strict=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step(steps + 2)
        spent = {event.key: event.cpu_time_total / 1e6 for event in profile.key_averages()}
        return {
            "preset": preset,
            "batch_size": batch_size,
            "threads": threads,
            "parameters": parameters,
            "cpu_seconds_a_sequence": [round(f(costs), 3) for f in (min, median, max)],
            "seconds_a_step": [round(f(walls), 3) for f in (min, median, max)],
            "peak_memory_gb": round(peak / 1e9, 2),
            "phases_seconds": {name: round(spent.get(name, 0.0), 3) for name in PHASES},
        }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:5]))))
