"""Frames per second of recording dm_control episodes, by one process and by one per core, once they are ready.

Run with `make bench ARGS=benchmarks/test_bench_collect.py`. The rates of all rounds stand in `extra_info`; the target
is 1.8 times one process's on two cores. Starting (finding a back-end, importing, reading the model) is measured apart.
"""

import pytest

from aime_fast.data.collect import collect
from aime_fast.data.crew import Crew, usable_cores
from aime_fast.data.simulation import Choices
from aime_fast.doctor import choose_graphics

EPISODES, LENGTH, ROUNDS = 4, 60, 3


@pytest.fixture(scope="module")
def graphics():
    working, results = choose_graphics()
    if working is None:
        pytest.skip(results[0].line)
    return working


@pytest.mark.parametrize("environment", ["cartpole_swingup", "cheetah_run", "humanoid_walk"])
@pytest.mark.parametrize("processes", sorted({1, usable_cores()}))
def test_record(benchmark, tmp_path, graphics, environment, processes):
    choices = Choices(environment=environment, length=LENGTH, policy="ou", action_repeat=2, camera=0, seed=0)
    files = [(number, tmp_path / f"{number}.h5") for number in range(EPISODES)]
    benchmark.group = environment
    with Crew(choices, graphics, processes) as crew:
        crew.provenance()
        benchmark.pedantic(lambda: sum(crew.record(files)), rounds=ROUNDS, warmup_rounds=1)
    times = benchmark.stats.stats.sorted_data
    benchmark.extra_info["frames_per_second"] = [round(EPISODES * LENGTH / time, 1) for time in reversed(times)]


def test_start(benchmark, tmp_path):
    """From the command to a folder of one frame."""
    choices = dict(episodes=1, length=1, processes=1, force=True)
    benchmark.group = "start"
    benchmark.pedantic(collect, ("cartpole_swingup", tmp_path / "out"), choices, rounds=3, warmup_rounds=1)
