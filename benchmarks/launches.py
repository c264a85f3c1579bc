"""Counts the launches of a training step by phase, as a GPU would make them; needs no GPU.

    python benchmarks/launches.py PRESET [BATCH_SIZE] [--operators N]

`launches` is the number of operators that are not views. A library's operator counts once, whatever number of kernels
it starts; so does each kernel of this project, the LSTM and a GRU cell. `operators` also lists the N most frequent.
"""

import argparse
import tempfile
from collections import Counter

import torch

from aime_fast import DMCVBTrainer
from aime_fast.profiling.launches import Launches, counted_launches


def launches_of(preset: str, batch_size: int = 8, **options: object) -> Launches:
    """The launches of one step on the recorded sample."""
    with tempfile.TemporaryDirectory() as folder:
        loader = {"batch_size": batch_size}
        trainer = DMCVBTrainer(preset=preset, steps=8, out=f"{folder}/run", compile="off", loader=loader, **options)
        trainer.step(trainer.step.fetch(0), 0.5)  # makes the states that later steps find
        inputs, beta = trainer.step.fetch(1), torch.tensor(0.5)
        with counted_launches() as launches:
            trainer.step(inputs, beta)
        trainer.close()
    return launches


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset")
    parser.add_argument("batch_size", type=int, nargs="?", default=8)
    parser.add_argument("--operators", type=int, default=0)
    given = parser.parse_args()
    found = launches_of(given.preset, given.batch_size)
    for phase, count in found.by_phase().items():
        print(f"{count:6d}  {phase}")
    print(f"{sum(found.counts.values()):6d}  in all")
    operators: Counter[str] = Counter()
    for (_, operator), count in found.counts.items():
        operators[operator] += count
    for operator, count in operators.most_common(given.operators):
        print(f"{count:6d}  {operator}")
