"""What training steps of one or several processes cost, as one line of JSON from rank 0.

    python benchmarks/rank_cost.py PRESET STEPS THREADS
    python -m torch.distributed.run --standalone --nproc_per_node 2 benchmarks/rank_cost.py PRESET STEPS THREADS zero2

The steps are the trainer's own on the recorded sample, of the preset's sizes or of `--batch-size` (of all processes
together) and `--sequence-length`, after some of warm-up; THREADS are those of one process. Each sample is the slowest
rank's:

- `seconds` of a step; on a card the mean of five that follow one another, as in training;
- `in_collectives`, on a CPU: how long a step's thread stood in a collective, which is sending, adding up, and waiting
  for a rank that is later. What gloo does beside the backward pass is not in it, but takes its cores from it.

`memory_bytes` is the most of any rank: allocated by torch on a card, else the peak of the process.
"""

import argparse
import json
import tempfile
import time
from statistics import median

import torch
import torch.distributed as dist
from gpu_check.stages.step import stepping
from measuring import peak_resident_bytes

from aime_fast.training.run.host_memory import keep_freed_memory
from aime_fast.training.trainer import DMCVBTrainer


class Standing:
    """Adds up the seconds that this process waits for collectives on the CPU: all of gloo's block in `Work.wait`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        wait = dist.Work.wait

        def timed(work: dist.Work, *arguments: object) -> object:
            began = time.perf_counter()
            try:
                return wait(work, *arguments)
            finally:
                self.seconds += time.perf_counter() - began

        dist.Work.wait = timed


def measure(preset: str, steps: int, threads: int, ds_config: str | None, loader: dict[str, int]) -> None:
    """Print the figures of `steps` samples."""
    keep_freed_memory()
    on_card = torch.cuda.is_available()
    warm_up, in_a_row = (12, 5) if on_card else (2, 1)
    with tempfile.TemporaryDirectory() as folder:
        options = {"out": f"{folder}/run", "threads": threads, "ds_config": ds_config, "loader": loader}
        trainer = DMCVBTrainer(preset=preset, steps=10**6, **options)
        engine, standing = trainer.engine, Standing()
        walls, waits = [], []
        with stepping(trainer) as step:
            for _ in range(warm_up):
                step()
            for _ in range(steps):
                if on_card:
                    torch.cuda.synchronize()
                engine.barrier()
                standing.seconds, began = 0.0, time.perf_counter()
                for _ in range(in_a_row):
                    step()
                if on_card:
                    torch.cuda.synchronize()
                walls.append((time.perf_counter() - began) / in_a_row)
                waits.append(standing.seconds)
        figures = {
            "processes": engine.world_size,
            "threads": threads,
            "engine": ds_config or "plain",
            "frames_a_second": _frames(trainer.config.loader) / median(_slowest(trainer, walls)),
            "memory_bytes": max(trainer.hosts.gather(_peak_bytes(on_card))),
            "samples": {"seconds": _slowest(trainer, walls), "in_collectives": _slowest(trainer, waits)},
        }
        if engine.rank == 0:
            print(json.dumps(figures))
        trainer.close()


def _slowest(trainer: DMCVBTrainer, values: list[float]) -> list[float]:
    """The largest of the ranks' values, step by step."""
    return [max(ranks) for ranks in zip(*trainer.hosts.gather(values), strict=True)]


def _frames(loader) -> int:
    return loader.batch_size * loader.sequence_length


def _peak_bytes(on_card: bool) -> int:
    if on_card:
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset")
    parser.add_argument("steps", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("ds_config", nargs="?", default="", help="zero0 to zero3, or a file; default: no DeepSpeed")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--sequence-length", type=int)
    given = parser.parse_args()
    sizes = {"batch_size": given.batch_size, "sequence_length": given.sequence_length}
    known = {name: size for name, size in sizes.items() if size is not None}
    measure(given.preset, given.steps, given.threads, given.ds_config or None, known)
