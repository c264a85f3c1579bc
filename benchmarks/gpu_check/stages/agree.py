"""Whether a CPU and a GPU compute the same losses: the first steps of `debug`, every way in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gpu_check.worker import Emit, Failure

FIRST, LATER = 1e-4, 1e-2
"""Largest differences in float32: of a loss in the first step, of a task's total in all. Rounding grows with them."""
WAYS: dict[str, dict[str, object]] = {
    "fp32": {"cuda_graph": "off", "optim": {"precision": "fp32", "tf32": False}},
    "fp32 captured": {"cuda_graph": "on", "optim": {"precision": "fp32", "tf32": False}},
    "tf32": {"cuda_graph": "off", "optim": {"precision": "fp32", "tf32": True}},
    "bf16": {"cuda_graph": "off", "optim": {"precision": "bf16", "tf32": True}},
}
"""Options of the trainer by the name of the way. In float32 the losses must agree; the others are only shown."""
LEAST = 0.01
"""Smallest scale of a difference: some losses are differences of larger numbers, and rounding is all they are."""
OF_CODES = ("perplexity",)
"""Values that jump when rounding gives one token another code. They are shown and not judged."""
TOTALS = ("total_elbo", "perceiver_loss", "total_predictive")
"""What is judged in all steps: AdamW turns the rounding of gradients near zero into steps."""
Terms = dict[str, list[float]]


def run(emit: Emit, device: str, steps: int) -> None:
    """Emit the largest differences of each way from the CPU; raise if float32 disagrees or a way fails."""
    ways = {name: options for name, options in WAYS.items() if device == "cuda" or name in ("fp32", "bf16")}
    with tempfile.TemporaryDirectory() as folder:
        on_cpu = Way("cpu", WAYS["fp32"], steps, folder)
        others = [Way(name, options, steps, folder) for name, options in ways.items()]
        truth, wrong = on_cpu.losses(), []
        if truth is None:
            raise Failure("the steps on the CPU failed; the log has the reason")
        for way in others:
            if (found := way.losses()) is None:
                emit({"row": way.name, "agrees": "failed"})
                wrong.append(f"{way.name} failed")
                continue
            apart = differences(truth, found)
            first = max((name for name in apart if name not in OF_CODES), key=lambda name: apart[name][0])
            worst = max((name for name in apart if name in TOTALS), key=lambda name: apart[name][1])
            figures = {"first_step": apart[first][0], "loss": first, f"{steps}_steps": apart[worst][1], "worst": worst}
            must = "fp32" in way.name
            agrees = apart[first][0] <= FIRST and apart[worst][1] <= LATER
            emit({"row": way.name, **figures, "agrees": agrees if must else "-", "terms": apart})
            if must and not agrees:
                wrong.append(f"{way.name} differs by {apart[worst][1]:.2g} in {worst}")
        if wrong:
            raise Failure("; ".join(wrong))


class Way:
    """A process that takes the steps in one way; the CPU's own is not to see a GPU."""

    def __init__(self, name: str, options: Mapping[str, object], steps: int, folder: str) -> None:
        self.name, self._file = name, Path(folder) / f"{name}.json"
        hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if name == "cpu" else {}
        command = [sys.executable, "-m", "gpu_check.stages.agree", json.dumps(options), str(steps), str(self._file)]
        self._process = subprocess.Popen(command, env={**os.environ, **hidden})

    def losses(self) -> Terms | None:
        """What it computed; None if it failed."""
        return None if self._process.wait() else json.loads(self._file.read_text())


def differences(one: Terms, other: Terms) -> dict[str, tuple[float, float]]:
    """Largest difference of each loss in the first step and in all, relative to the loss's largest magnitude or 0.01.

    Norms, angles and cosines of gradients are left out: an angle between two small vectors has no scale. A value that
    is not finite differs by infinity.
    """
    found = {}
    for name, values in one.items():
        if not name.startswith(("rgb_", "grad_norm")):
            scale = max(LEAST, *map(abs, values))
            apart = [abs(a - b) / scale for a, b in zip(values, other[name], strict=True)]
            apart = [x if x == x else float("inf") for x in apart]
            found[name] = (apart[0], max(apart))
    return found


def main(options: str, steps: str, file: str) -> None:
    """Write the values of the first steps of `debug` by name, under these options of the trainer, JSON, to a file."""
    from aime_fast.training.trainer import DMCVBTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = DMCVBTrainer(
            preset="debug", steps=int(steps), out=f"{folder}/run", compile="off", **json.loads(options)
        )
        rows = []
        for step in range(int(steps)):
            trainer.engine.set_lr(trainer.schedules.lr(step, 0.0))
            result = trainer.step(trainer.step.fetch(step), trainer.schedules.beta(step))
            rows.append({name: float(value) for name, value in result.values.items()})
        trainer.close()
    Path(file).write_text(json.dumps({name: [row[name] for row in rows] for name in rows[0]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
