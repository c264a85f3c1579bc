"""Compare the time of a training step with that of another commit; prints a row of the benchmarks as JSON.

    python benchmarks/against_commit.py COMMIT PRESET BATCH_SIZE STEPS THREADS

Each commit runs in its own process. The two take steps in turn, so that both run under the same load, and which one
goes first alternates. Each pair of neighbouring steps gives one ratio: the time of this checkout over that of COMMIT.
The row has the percentiles of this checkout's seconds, and the median ratio with its 20th and 80th percentile.

COMMIT is checked out into a temporary git worktree and runs in this environment. Steps run as written (not compiled) on
the recorded sample. The first four steps warm up and are not counted.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from rows import make_row

ROOT = Path(__file__).parents[1]
WARM_UP = 4
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(256 << 20)}
"""What `aime-fast train` tells glibc at its start, for both processes."""

WORKER = """
import sys, tempfile, time
from aime_fast import DMCVBTrainer
preset, batch_size, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with tempfile.TemporaryDirectory() as folder:
    options = {"loader": {"batch_size": batch_size}, "threads": threads, "compile": "off"}
    trainer = DMCVBTrainer(preset=preset, steps=10**6, out=folder + "/run", **options)
    print("ready", flush=True)
    for step, _ in enumerate(sys.stdin):
        inputs = trainer.step.fetch(step)
        started = time.perf_counter()
        trainer.step(inputs, 0.5)
        print(time.perf_counter() - started, flush=True)
"""


@contextmanager
def stepper(checkout, words):
    """A process that trains with the code in `checkout`; yields a call that takes one step and returns its seconds."""
    paths = f"{checkout}{os.pathsep}{checkout / 'kernels'}"
    environment = {**os.environ, **KEEP_FREED_MEMORY, "PYTHONPATH": paths}
    command = [sys.executable, "-c", WORKER, *words]
    process = subprocess.Popen(
        command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def read():
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the process of {checkout} ended; its message stands above")
        return line

    def step():
        process.stdin.write("step\n")
        process.stdin.flush()
        return float(read())

    try:
        read()
        yield step
    finally:
        process.stdin.close()
        process.wait()


@contextmanager
def worktree(commit):
    """A temporary checkout of `commit`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "commit"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", path, commit], cwd=ROOT, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=ROOT, check=True)


def compare(commit, preset, batch_size, steps, threads):
    """The row of this checkout's steps, over the neighbouring steps of `commit`."""
    words = [preset, batch_size, threads]
    with worktree(commit) as other, stepper(ROOT, words) as here, stepper(other, words) as there:
        for _ in range(WARM_UP):
            here(), there()
        pairs = []
        for turn in range(int(steps)):
            if turn % 2:
                before, now = there(), here()
            else:
                now, before = here(), there()
            pairs.append((now, before))
    now, before = zip(*pairs, strict=True)
    return make_row(
        "step against another commit",
        "this checkout",
        now,
        unit="s",
        shape=f"{preset} B={batch_size}, {threads} threads",
        dtype="float32",
        baseline=(commit, before),
        paired=True,
    )


if __name__ == "__main__":
    print(compare(*sys.argv[1:6]).model_dump_json())
