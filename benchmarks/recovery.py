"""Kills a run with SIGKILL at random moments, resumes it each time, and compares it with an uninterrupted run.

    python benchmarks/recovery.py --kills 50
    python benchmarks/recovery.py --stall small      # how long a checkpoint stops the loop, compared with a step, and
                                                     # how much later a resumed run takes its first step than a new one;
                                                     # the last line has the seconds as JSON

Every attempt is a process forked from one that has imported the program, so imports are paid once. One third of the
kills come while a checkpoint is written, the others at any time after the start of the process. A run that reaches its
end before all kills are used is compared, and another run begins. The exit code is 0 if every resumed run ended with
the same bits, every checkpoint was readable after every kill, and no resume repeated more steps than lie between two
checkpoints.
"""

import argparse
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aime_fast import train
from aime_fast.training import trainer
from aime_fast.training.checkpoint.finding import checkpoint_folders, fault

assert trainer  # what the forked processes need is imported here, once
RESULT = ("weights.safetensors", "rank-0-of-1.safetensors")


@dataclass
class Outcome:
    """Results over all kills."""

    moments: list[str] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    unreadable: int = 0
    ends: list[bool] = field(default_factory=list)
    """For each run that reached its end: whether its bits are the same."""
    first_steps: list[float] = field(default_factory=list)
    """Seconds from the start of a resuming process to its first new step."""


class Run:
    """One folder and the processes that train into it."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.options = folder, options

    def start(self) -> int:
        """Fork a process that continues to train; return its process number."""
        child = os.fork()
        if child:
            return child
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            code = train.main([*self.options, "--out", str(self.folder), "--resume", "auto"])
        finally:
            os._exit(code)

    @property
    def log(self) -> Path:
        """Output of its processes."""
        return self.folder.with_suffix(".log")

    def rows(self) -> list[dict]:
        """The training rows that are complete."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in rows if row["split"] == "train"]

    @property
    def done(self) -> int:
        """Steps in the log."""
        return max((row["step"] for row in self.rows()), default=0)

    @property
    def checkpoints(self) -> list[Path]:
        return checkpoint_folders(self.folder / "checkpoints")

    @property
    def writing(self) -> bool:
        return any((self.folder / "checkpoints").glob(".step-*"))

    def result(self) -> list[bytes]:
        return [(self.checkpoints[-1] / name).read_bytes() for name in RESULT]


def ended(run: Run, child: int) -> bool:
    """Whether a process has ended; an exit code other than 0 ends the benchmark."""
    gone, status = os.waitpid(child, os.WNOHANG)
    if gone and status:
        raise SystemExit(f"a resumed run failed with status {status}:\n{run.log.read_text()[-2000:]}")
    return bool(gone)


def kill_once(run: Run, draw: random.Random, longest: float, outcome: Outcome) -> bool:
    """Start a process, kill it and check; False if the process ended before the kill."""
    saved = int(run.checkpoints[-1].name[5:]) if run.checkpoints else 0
    began, aimed = time.monotonic(), draw.random() < 1 / 3
    moment = draw.uniform(0, longest)
    child, wall = run.start(), time.time()
    while not (run.writing and time.monotonic() - began > moment / 4) if aimed else time.monotonic() - began < moment:
        if ended(run, child):
            return False
        time.sleep(0.0005)
    if aimed:
        time.sleep(draw.uniform(0, 0.03))
    if ended(run, child):
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    new = [row["time"] for row in run.rows() if row["time"] > wall]
    if saved and new:
        outcome.first_steps.append(min(new) - wall)
    outcome.moments.append("while a checkpoint was written" if run.writing else "training" if new else "starting")
    outcome.unreadable += sum(fault(path) is not None for path in run.checkpoints)
    if new:
        outcome.repeated.append(run.done - (int(run.checkpoints[-1].name[5:]) if run.checkpoints else 0))
    return True


def finish(run: Run) -> None:
    _, status = os.waitpid(run.start(), 0)
    if status:
        raise SystemExit(f"the last process of {run.folder} failed:\n{run.log.read_text()[-2000:]}")


def measure(kills: int, steps: int, every: int, seed: int, folder: Path, extra: list[str]) -> tuple[Outcome, float]:
    options = ["--preset", "debug", "--steps", str(steps), "--checkpoint-every", str(every), "--threads", "1"]
    options += ["--logging.log-every", "1", "--logging.tracker", "none", *extra]
    alone = Run(folder / "alone", options)
    began = time.monotonic()
    finish(alone)
    whole = time.monotonic() - began
    draw, outcome, number = random.Random(seed), Outcome(), 0
    run = Run(folder / "run-0", options)
    while len(outcome.moments) < kills:
        # On average half of the attempts reach the next checkpoint.
        if not kill_once(run, draw, 3 * every * whole / steps, outcome):
            outcome.ends.append(run.result() == alone.result())
            number += 1
            run = Run(folder / f"run-{number}", options)
    finish(run)
    outcome.ends.append(run.result() == alone.result())
    return outcome, whole


def recovery(preset: str, folder: Path, rounds: int = 3) -> dict[str, list[float]]:
    """Seconds from the start of a process to its first step: of a new run, and of one resumed from a checkpoint."""
    options = ["--preset", preset, "--steps", "1000", "--checkpoint-every", "1", "--threads", str(os.cpu_count())]
    options += ["--logging.log-every", "1", "--logging.tracker", "none"]
    seconds = ([], [])
    for number in range(rounds):
        run = Run(folder / f"new-{number}", options)
        for times in seconds:
            wall, child = time.time(), run.start()
            while not (new := [row["time"] for row in run.rows() if row["time"] > wall]) or not run.checkpoints:
                if ended(run, child):
                    raise SystemExit(f"the run ended before its first checkpoint:\n{run.log.read_text()[-2000:]}")
                time.sleep(0.005)
            times.append(min(new) - wall)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return dict(zip(("new", "resumed"), seconds, strict=True))


def stall(preset: str, folder: Path) -> dict[str, list[float]]:
    """Seconds of six steps and of the three checkpoints among them, and the megabytes of the last."""
    training = trainer.DMCVBTrainer(
        preset=preset, steps=100, checkpoint_every=2, out=str(folder / "run"), logging={"tracker": "none"}
    )
    steps, saves = [], []

    def timed(call: Callable, times: list[float]) -> Callable:
        def run(*arguments: object) -> object:
            began = time.perf_counter()
            result = call(*arguments)
            times.append(time.perf_counter() - began)
            return result

        return run

    training.step = Timed(training.step, timed(training.step, steps))
    training.checkpoints.save = timed(training.checkpoints.save, saves)
    summary = training.fit(until=6)
    size = sum(path.stat().st_size for path in summary.checkpoint.iterdir()) / 1e6
    training.close()
    return {"steps": steps, "saves": saves, "megabytes": [size]}


def words(preset: str, found: dict[str, list[float]]) -> str:
    """What `recovery` and `stall` found."""
    shown = {name: ", ".join(f"{value:.2f}" for value in sorted(values)) for name, values in found.items()}
    return (
        f"`{preset}`, {os.cpu_count()} threads, {found['megabytes'][0]:.0f} MB a checkpoint\n"
        f"seconds of the steps: {shown['steps']}\n"
        f"seconds that a checkpoint stopped the loop: {shown['saves']}\n"
        "seconds from the start of a process, imports done, to the end of its first step: "
        f"of a new run {shown['new']}; of a resumed one {shown['resumed']}"
    )


@dataclass
class Timed:
    """A training step whose calls are timed."""

    step: Any
    call: Callable

    def __call__(self, *arguments: object) -> object:
        return self.call(*arguments)

    def fetch(self, step: int) -> object:
        return self.step.fetch(step)


def table(outcome: Outcome, kills: int, steps: int, every: int, whole: float) -> str:
    kinds = Counter(outcome.moments)
    first = outcome.first_steps or [float("nan")]
    rows = [
        ("kills", f"{kills}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))),
        ("unreadable checkpoints after a kill", outcome.unreadable),
        (f"runs of {steps} steps that reached their end", len(outcome.ends)),
        ("of these bit-identical to the uninterrupted run (weights, optimiser, balancer)", sum(outcome.ends)),
        (
            "steps repeated after a kill: median, most",
            f"{statistics.median(outcome.repeated or [0]):g}, "
            f"{max(outcome.repeated, default=0)} (a checkpoint every {every})",
        ),
        (
            "seconds from the start of a resuming process to its first new step: median, most",
            f"{statistics.median(first):.1f}, {max(first):.1f}",
        ),
        ("seconds of the uninterrupted run", f"{whole:.1f}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--stall", metavar="PRESET", help="measure the stall and the start of this preset instead")
    known, extra = parser.parse_known_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    if known.stall:
        with tempfile.TemporaryDirectory() as folder:
            # `recovery` first: it forks, which a process with torch's threads must not.
            found = recovery(known.stall, Path(folder)) | stall(known.stall, Path(folder))
        print(words(known.stall, found), json.dumps(found), sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        outcome, whole = measure(known.kills, known.steps, known.every, known.seed, Path(folder), extra)
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} CPUs, {platform.machine()}\n"
    )
    print(table(outcome, known.kills, known.steps, known.every, whole))
    good = all(outcome.ends) and not outcome.unreadable and max(outcome.repeated, default=0) <= known.every
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
