"""What several benchmarks measure alike."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
Call = Callable[[], object]


def peak_bytes(call: Call) -> int:
    """The most memory that is allocated on the CPU at one time in a call, beyond what was there before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    # Without `acc_events` torch 2.11 warns that it forgets events at the end of a cycle; here is one cycle.
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def peak_resident_bytes() -> int:
    """The most memory that this process had in use. `ru_maxrss` would count the process that started it, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside. The figures of the documents are of two, where they say nothing else."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def alternating(
    forms: Mapping[str, Call],
    rounds: int,
    *,
    warm_up: int = 2,
    setup: Call | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call by name. Every round makes all calls, so that all see one machine.

    `setup` runs before each call and is not counted. Every second round makes the calls in the opposite order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(warm_up + rounds):
        for name in list(forms)[:: -1 if round_ % 2 else 1]:
            if setup is not None:
                setup()
            start = clock()
            forms[name]()
            end = clock()
            if round_ >= warm_up:
                seconds[name].append(end - start)
    return seconds


def apart(call: Call, rounds: int, *, warm_up: int = 2) -> list[float]:
    """Seconds of a call whose rounds follow one another: for what works on in the background between two calls."""
    return alternating({"": call}, rounds, warm_up=warm_up)[""]


def per(samples: Mapping[str, Sequence[float]], count: float) -> dict[str, list[float]]:
    """The samples of one of `count` equal parts."""
    return {name: [value / count for value in values] for name, values in samples.items()}


def run(*words: object, processes: int = 0, threads: int = 2) -> str:
    """What a Python command prints, run from the project's root; `processes` of them under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *launcher, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run_json(*words: object, processes: int = 0, threads: int = 2) -> dict:
    """The JSON object in the last line that a Python command prints, as in `run`."""
    return json.loads(run(*words, processes=processes, threads=threads).splitlines()[-1])
