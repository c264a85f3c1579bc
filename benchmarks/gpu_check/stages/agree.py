"""Whether a CPU and a GPU compute the same losses: the first steps of `debug`, every way in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_check.worker import Emit

STEPS = 20
FIRST, LATER = 1e-4, 1e-2
"""Largest differences of a loss in float32, in the first step and in all. Rounding grows from step to step."""
WAYS: dict[str, dict[str, object]] = {
    "fp32": {"cuda_graph": "off", "optim": {"precision": "fp32", "tf32": False}},
    "fp32 captured": {"cuda_graph": "on", "optim": {"precision": "fp32", "tf32": False}},
    "tf32": {"cuda_graph": "off", "optim": {"precision": "fp32", "tf32": True}},
    "bf16": {"cuda_graph": "off", "optim": {"precision": "bf16", "tf32": True}},
}
"""Options of the trainer by the name of the way. In float32 the losses must agree; the others are only shown."""
Terms = dict[str, list[float]]


def run(emit: Emit, device: str) -> None:
    """Emit the largest differences of each way from the CPU; raise if float32 disagrees or a way fails."""
    ways = {name: options for name, options in WAYS.items() if device == "cuda" or name in ("fp32", "bf16")}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.json" for name in ("cpu", *ways)}
        processes = {name: _start(ways.get(name, WAYS["fp32"]), file, name != "cpu") for name, file in files.items()}
        codes = {name: process.wait() for name, process in processes.items()}
        if codes["cpu"]:
            raise RuntimeError("the steps on the CPU failed; the log has the reason")
        truth, wrong = json.loads(files["cpu"].read_text()), []
        for name in ways:
            if codes[name]:
                emit({"row": name, "agrees": "failed"})
                wrong.append(f"{name} failed")
                continue
            found = differences(truth, json.loads(files[name].read_text()))
            first, later = (max(found.items(), key=lambda item: item[1][place]) for place in (0, 1))
            agrees = first[1][0] <= FIRST and later[1][1] <= LATER
            figures = {
                "first_step": first[1][0],
                "term": first[0],
                f"{STEPS}_steps": later[1][1],
                "worst_term": later[0],
            }
            emit({"row": name, **figures, "agrees": agrees if "fp32" in name else "-", "terms": found})
            if "fp32" in name and not agrees:
                wrong.append(f"{name} differs by {later[1][1]:.2g} in {later[0]}")
        if wrong:
            raise RuntimeError("; ".join(wrong))


def differences(one: Terms, other: Terms) -> dict[str, tuple[float, float]]:
    """Largest difference of each loss in the first step and in all, relative to the loss's largest magnitude.

    Norms, angles and cosines of gradients are left out: an angle between two small vectors has no scale. A value that
    is not finite differs by infinity.
    """
    found = {}
    for name, values in one.items():
        if not name.startswith(("rgb_", "grad_norm")):
            scale = max(map(abs, values)) or 1.0
            apart = [abs(a - b) / scale for a, b in zip(values, other[name], strict=True)]
            apart = [x if x == x else float("inf") for x in apart]
            found[name] = (apart[0], max(apart))
    return found


def losses(options: Mapping[str, object], steps: int = STEPS) -> Terms:
    """The values of the first steps of `debug` by name."""
    from aime_fast.training.trainer import DMCVBTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = DMCVBTrainer(preset="debug", steps=steps, out=f"{folder}/run", compile="off", **options)
        rows = []
        for step in range(steps):
            trainer.engine.set_lr(trainer.schedules.lr(step, 0.0))
            result = trainer.step(trainer.step.fetch(step), trainer.schedules.beta(step))
            rows.append({name: float(value) for name, value in result.values.items()})
        trainer.close()
    return {name: [row[name] for row in rows] for name in rows[0]}


def _start(options: Mapping[str, object], file: Path, on_device: bool) -> subprocess.Popen[bytes]:
    """A process that writes the losses to `file`; the CPU's own is not to see a GPU."""
    hidden = {} if on_device else {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpu_check.stages.agree", json.dumps(options), str(file)]
    return subprocess.Popen(command, env={**os.environ, **hidden})


def main(arguments: Sequence[str]) -> None:
    """Write the losses under these options, JSON, to a file."""
    Path(arguments[1]).write_text(json.dumps(losses(json.loads(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
