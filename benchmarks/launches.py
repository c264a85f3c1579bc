"""Counts the launches of a training step by phase, as a GPU would make them; needs no GPU.

    python benchmarks/launches.py PRESET [BATCH_SIZE] [--operators N] [--compile on]

`launches` is the number of operators that are not views. A library's operator counts once, whatever number of kernels
it starts; so does each kernel of this project, the LSTM and a GRU cell. `--operators` also lists the N most frequent.
`--compile on` counts the compiled step: the kernels of every compiled graph that runs, times its runs, and what runs as
written between them (`aime_fast/profiling/compiled.py`). It compiles everything anew, which takes minutes.
"""

import argparse
import tempfile
from collections import Counter

import torch

from aime_fast import DMCVBTrainer
from aime_fast.config.schema import PRESETS
from aime_fast.profiling.compiled import counted_graphs
from aime_fast.profiling.launches import Launches, counted_launches, gpu_routes, without_modes


def launches_of(preset: str, batch_size: int = 8, **options: object) -> Launches:
    """The launches of one step as written, on the recorded sample."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(preset, batch_size, folder, compile="off", **options)
        trainer.step(trainer.step.fetch(0), 0.5)  # makes the states that later steps find
        inputs, beta = trainer.step.fetch(1), torch.tensor(0.5)
        with counted_launches() as launches:
            trainer.step(inputs, beta)
        trainer.close()
    return launches


def compiled_launches_of(preset: str, batch_size: int = 8, **options: object) -> Launches:
    """The launches of one compiled step on the recorded sample."""
    counting: list[Launches] = []
    beta = torch.tensor(0.5)
    with (
        tempfile.TemporaryDirectory() as folder,
        gpu_routes(),
        counted_graphs(lambda kernels, run: counting[-1].graph(kernels, run) if counting else run()),
    ):
        trainer = _trainer(preset, batch_size, folder, compile="on", **options)
        for step in range(2):
            trainer.step(trainer.step.fetch(step), beta)
        for owner in trainer.compilation.owners.values():
            for name in owner.compiled:
                setattr(owner, name, without_modes(getattr(owner, name)))
        inputs = trainer.step.fetch(2)
        with torch.compiler.set_stance("fail_on_recompile"), counted_launches() as launches:
            counting.append(launches)
            trainer.step(inputs, beta)
        trainer.close()
    return launches


def _trainer(preset: str, batch_size: int, folder: str, **options: object) -> DMCVBTrainer:
    return DMCVBTrainer(preset=preset, steps=8, out=f"{folder}/run", loader={"batch_size": batch_size}, **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("batch_size", type=int, nargs="?", default=8)
    parser.add_argument("--operators", type=int, default=0)
    parser.add_argument("--compile", choices=("on", "off"), default="off")
    given = parser.parse_args()
    found = (compiled_launches_of if given.compile == "on" else launches_of)(given.preset, given.batch_size)
    for phase, count in found.by_phase().items():
        print(f"{count:6d}  {phase}")
    print(f"{sum(found.counts.values()):6d}  in all")
    operators: Counter[str] = Counter()
    for (_, operator), count in found.counts.items():
        operators[operator] += count
    for operator, count in operators.most_common(given.operators):
        print(f"{count:6d}  {operator}")
