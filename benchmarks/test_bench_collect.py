"""Frames per second of recording dm_control episodes, by one process and by one per core, once they are ready.

Run with `make bench ARGS=benchmarks/test_bench_collect.py`. One process and all cores take turns, so that both meet
the same machine; `extra_info` holds the rates of all rounds, the processor time of a frame, and how many times one
process's speed the cores reach together, which on two of them must be 1.8. Starting (finding a back-end, importing,
reading the model) is measured apart.
"""

import time
from itertools import cycle

import numpy as np
import psutil
import pytest

from aime_fast.data.collect.collect import collect
from aime_fast.data.collect.collector_pool import CollectorPool, usable_cores
from aime_fast.data.collect.simulation import Choices
from aime_fast.doctor import choose_graphics

EPISODES, LENGTH, ROUNDS, TARGET = 4, 60, 3, 1.8


@pytest.fixture(scope="module")
def graphics():
    working, results = choose_graphics()
    if working is None:
        pytest.skip(results[0].line)
    return working


def cpu_seconds():
    """Processor time of the processes that record, all threads together."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


@pytest.mark.timeout(600)
@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
@pytest.mark.parametrize("environment", ["cartpole_swingup", "cheetah_run", "humanoid_walk"])
def test_record(benchmark, tmp_path, graphics, environment):
    choices = Choices(environment=environment, length=LENGTH, policy="ou", action_repeat=2, camera=0, seed=0)
    episodes = max(EPISODES, 2 * usable_cores())
    files = [(number, tmp_path / f"{number}.h5") for number in range(episodes)]
    seconds, cpu = {1: [], usable_cores(): []}, {1: [], usable_cores(): []}
    with CollectorPool(choices, graphics, 1) as one, CollectorPool(choices, graphics, usable_cores()) as all_cores:
        turns = cycle([(1, one), (usable_cores(), all_cores)])
        one.provenance(), all_cores.provenance()

        def record():
            size, pool = next(turns)
            before, started = cpu_seconds(), time.perf_counter()
            assert sum(frames for frames, _, _ in pool.run(files)) == episodes * LENGTH
            seconds[size].append(time.perf_counter() - started)
            cpu[size].append(cpu_seconds() - before)

        benchmark.pedantic(record, rounds=2 * ROUNDS, warmup_rounds=2)
    for size in seconds:
        rates = sorted(round(episodes * LENGTH / second, 1) for second in seconds[size][1:])
        benchmark.extra_info[f"frames_per_second_{size}"] = rates
        benchmark.extra_info[f"cpu_ms_a_frame_{size}"] = round(1e3 * sum(cpu[size][1:]) / ROUNDS / episodes / LENGTH, 2)
    speedup = np.median(seconds[1][1:]) / np.median(seconds[usable_cores()][1:])
    benchmark.extra_info |= {"speedup": round(float(speedup), 2), "target_on_two_cores": TARGET}
    print(environment, benchmark.extra_info)
    assert speedup >= TARGET


def test_start(benchmark, tmp_path):
    """From the command to a folder of one frame."""
    choices = dict(episodes=1, length=1, processes=1, force=True)
    benchmark.group = "start"
    benchmark.pedantic(collect, ("cartpole_swingup", tmp_path / "out"), choices, rounds=3, warmup_rounds=1)
