"""Frames a second of training steps and the share of time spent in collectives, as one line of JSON from rank 0.

    python benchmarks/rank_cost.py PRESET STEPS THREADS
    python -m torch.distributed.run --standalone --nproc_per_node 2 benchmarks/rank_cost.py PRESET STEPS THREADS zero2

The steps are the trainer's own (`TrainingStep` on the recorded sample, the preset's global batch) after two of warm-up;
THREADS are those of one process. `communication` is the time for which a step's thread stood in a collective, over the
step's time, median over steps, the larger of the ranks: sending, adding up, and waiting for a rank that is later. What
gloo does beside the backward pass is not in it, but takes its cores from it.
"""

import json
import sys
import tempfile
import time
from statistics import median

import torch.distributed as dist

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


def measure(preset: str, steps: int, threads: int, ds_config: str | None) -> None:
    """Print the figures of `steps` steps."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DMCVBTrainer(
            preset=preset, steps=steps + 2, out=f"{folder}/run", threads=threads, ds_config=ds_config
        )
        engine, loader, standing = trainer.engine, trainer.config.loader, Standing()
        walls, shares = [], []
        for index in range(steps + 2):
            engine.barrier()
            standing.seconds, began = 0.0, time.perf_counter()
            trainer.step(trainer.step.fetch(index), 0.5)
            walls.append(time.perf_counter() - began)
            shares.append(standing.seconds / walls[-1])
        slowest = [max(ranks) for ranks in zip(*trainer.hosts.gather(walls[2:]), strict=True)]
        communication = max(trainer.hosts.gather(median(shares[2:])))
        frames = loader.batch_size * loader.sequence_length
        figures = {
            "processes": engine.world_size,
            "threads": threads,
            "engine": ds_config or "plain",
            "frames_a_second": round(frames / median(slowest), 1),
            "seconds_a_step": [round(f(slowest), 3) for f in (min, median, max)],
            "communication": round(communication, 3),
        }
        if engine.rank == 0:
            print(json.dumps(figures))
        trainer.close()


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
