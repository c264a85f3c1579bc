"""What a training step of one configuration costs."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpu_check.processes import STARTED
from gpu_check.worker import Emit

WARM_UP, PROFILED = 8, 3
SECONDS = 5.0
"""Time for the steps that are timed one by one: 5 to 30 of them."""
GB = 1e9


def run(emit: Emit, device: str, preset: str, batch_size: int, length: int, precision: str, mode: str) -> None:
    """Emit figures of one configuration, each kind as soon as it is known.

    `precision` is fp32, tf32 or bf16; `mode` is "as written", "captured", "compiled" or "captured and compiled".
    """
    import torch

    from aime_fast.training.trainer import DMCVBTrainer

    imported = _since_start()
    options = {
        "loader": {"batch_size": batch_size, "sequence_length": length},
        "optim": {"precision": "bf16" if precision == "bf16" else "fp32", "tf32": precision != "fp32"},
        "compile": "on" if "compiled" in mode else "off",
        "cuda_graph": "on" if "captured" in mode else "off",
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = DMCVBTrainer(preset=preset, steps=10**6, out=f"{folder}/run", **options)
        print(*trainer.notes, sep="\n", flush=True)
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        with stepping(trainer) as step:
            step()
            wait()
            emit({"import_s": imported, "first_step_s": _since_start()})
            for _ in range(WARM_UP - 1):
                step()
            wait()
            emit({"ready_s": _since_start()})
            times = _times(step, wait, batch_size * length)
            emit(times)
            emit(_memory(device))
            if device == "cuda":
                emit(_kernels(step, times["pipelined_ms"]))
            emit({"total_elbo": float(step().values["total_elbo"])})
        trainer.close()


@contextmanager
def stepping(trainer) -> Iterator[Callable[[], object]]:
    """A call that takes the next step as the training loop does: fetched ahead, with its learning rate and beta."""
    from aime_fast.training.prefetcher import Prefetcher

    prefetcher, done = Prefetcher(trainer.step.fetch, 0, None), 0

    def step():
        nonlocal done
        trainer.engine.set_lr(trainer.schedules.lr(done, 0.0))
        result = trainer.step(prefetcher.take(), trainer.schedules.beta(done))
        done += 1
        return result

    try:
        yield step
    finally:
        prefetcher.close()


def _times(step: Callable[[], object], wait: Callable[[], None], frames: int) -> dict[str, float]:
    """Milliseconds: of a step alone, of the host in it, and of steps that follow one another without waiting."""
    whole, host = [], []
    end = time.perf_counter() + SECONDS
    while len(whole) < 5 or (len(whole) < 30 and time.perf_counter() < end):
        started = time.perf_counter()
        step()
        host.append(time.perf_counter() - started)
        wait()
        whole.append(time.perf_counter() - started)
    count = len(whole)
    started = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    pipelined = (time.perf_counter() - started) / count
    low, middle, high = (1000 * value for value in (min(whole), statistics.median(whole), max(whole)))
    figures = {"ms": middle, "host_ms": 1000 * statistics.median(host), "pipelined_ms": 1000 * pipelined}
    return {**figures, "ms_min": low, "ms_max": high, "frames_per_s": frames / pipelined}


def _memory(device: str) -> dict[str, object]:
    """Gigabytes since the process started: allocated and reserved by torch at most, and taken on the card now."""
    if device == "cpu":
        from measuring import peak_resident_bytes  # imports torch

        return {"host_gb": peak_resident_bytes() / GB}
    import torch

    free, total = torch.cuda.mem_get_info()
    return {
        "allocated_gb": torch.cuda.max_memory_allocated() / GB,
        "reserved_gb": torch.cuda.max_memory_reserved() / GB,
        "card_gb": (total - free) / GB,
    }


def _kernels(step: Callable[[], object], pipelined_ms: float) -> dict[str, object]:
    """Kernels a step, and the milliseconds in which at least one runs.

    The profiler slows the host and not the kernels, so the share of a step is that of a step without it.
    """
    from gpu_check.stages.trace import kernels_of

    found = kernels_of(lambda: [step() for _ in range(PROFILED)])
    busy_ms = found.busy / PROFILED / 1000
    return {
        "kernels": round(len(found.names) / PROFILED),
        "copies": round(found.copies / PROFILED),
        "busy_ms": busy_ms,
        "busy_percent": 100 * busy_ms / pipelined_ms,
        "largest": found.largest(PROFILED),
        "families": found.families(PROFILED),
    }


def _since_start() -> float:
    """Seconds since the driver started this process."""
    return time.time() - float(os.environ[STARTED])
