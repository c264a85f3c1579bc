"""What one busy core costs a training, and what waiting threads that sleep cost an idle machine.

    python benchmarks/busy_core.py [PRESET] [SECONDS]

Two threads train `PRESET` (default `small`) on the recorded sample for `SECONDS` (default 40) in each of four settings,
in turn, three rounds: threads that sleep while they wait (what `aime-fast train` chooses) and threads as OpenMP has
them, both on idle cores and with another process that keeps one of the two cores busy. Prints a line of JSON: frames a
second of each, least, median and most, and ratios of medians. `busy` is sleeping threads beside a busy core over
sleeping threads on idle cores (aim: at least 0.4), `idle` is sleeping over unchosen on idle cores (aim: at least 0.98).
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from aime_fast.waiting import WAITING

ROOT = Path(__file__).parents[1]
THREADS, ROUNDS, WARM_UP = 2, 3, 3
CHOICES = {"sleeping": WAITING, "unchosen": {}}

WORKER = """
import sys, tempfile, time
from aime_fast.training.run.host_memory import keep_freed_memory
from aime_fast import DMCVBTrainer
keep_freed_memory()
preset, seconds, threads, warm_up = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with tempfile.TemporaryDirectory() as folder:
    trainer = DMCVBTrainer(preset=preset, steps=10**6, out=folder + "/run", threads=threads)
    batch = trainer.config.loader.batch_size * trainer.config.loader.sequence_length
    step, started = 0, None
    while started is None or time.perf_counter() - started < seconds:
        if step == warm_up:
            started = time.perf_counter()
        trainer.step(trainer.step.fetch(step), 0.5)
        step += 1
    print((step - warm_up) * batch / (time.perf_counter() - started))
"""


@contextmanager
def busy_core(core):
    """Another process that keeps this core busy."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"]
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def frames_per_second(preset, seconds, choice, cores):
    """The speed of a training of its own on these cores."""
    chosen = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in chosen} | CHOICES[choice]
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", WORKER, preset, str(seconds), str(THREADS), str(WARM_UP)]
    done = subprocess.run(
        command,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main():
    """Measure and print."""
    preset = sys.argv[1] if len(sys.argv) > 1 else "small"
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 40.0
    cores = sorted(os.sched_getaffinity(0))[:THREADS]
    if len(cores) < THREADS:
        raise SystemExit(f"error: this needs {THREADS} cores, here is {len(cores)}")
    found = {f"{choice}, {load}": [] for choice in CHOICES for load in ("idle", "busy")}
    for _ in range(ROUNDS):
        for choice in CHOICES:
            found[f"{choice}, idle"].append(frames_per_second(preset, seconds, choice, cores))
            with busy_core(cores[-1]):
                found[f"{choice}, busy"].append(frames_per_second(preset, seconds, choice, cores))
    middle = {name: median(speeds) for name, speeds in found.items()}
    ratios = {
        "busy": middle["sleeping, busy"] / middle["sleeping, idle"],
        "idle": middle["sleeping, idle"] / middle["unchosen, idle"],
        "busy, unchosen": middle["unchosen, busy"] / middle["unchosen, idle"],
    }
    speeds = {name: [round(value(speeds), 1) for value in (min, median, max)] for name, speeds in found.items()}
    rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps({"preset": preset, "threads": THREADS, "frames_per_second": speeds, "ratios": rounded}))


if __name__ == "__main__":
    main()
