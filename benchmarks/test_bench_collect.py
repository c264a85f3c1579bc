"""Seconds a frame of recording dm_control episodes, by one process and by one per core, once they are ready.

One process and all cores take turns, so that both meet the same machine. Starting (finding a back-end, importing,
reading the model) is measured apart.
"""

import psutil
import pytest
from measuring import alternating, apart, per

from aime_fast.data.collect.collect import collect
from aime_fast.data.collect.collector_pool import CollectorPool, usable_cores
from aime_fast.data.collect.simulation import Choices
from aime_fast.doctor import choose_graphics

EPISODES, LENGTH, ROUNDS = 4, 30, 5


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
@pytest.mark.parametrize(
    "environment",
    ["cheetah_run", *(pytest.param(n, marks=pytest.mark.slow) for n in ("cartpole_swingup", "humanoid_walk"))],
)
def test_record(record, record_forms, tmp_path, graphics, environment):
    choices = Choices(environment=environment, length=LENGTH, policy="ou", action_repeat=2, camera=0, seed=0)
    episodes = max(EPISODES, 2 * usable_cores())
    files, frames = [(number, tmp_path / f"{number}.h5") for number in range(episodes)], episodes * LENGTH
    cpu = []
    with CollectorPool(choices, graphics, 1) as one, CollectorPool(choices, graphics, usable_cores()) as all_cores:
        one.provenance(), all_cores.provenance()

        def recorded(pool):
            assert sum(found for found, _, _ in pool.run(files)) == frames

        def by_one():
            before = cpu_seconds()
            recorded(one)
            cpu.append((cpu_seconds() - before) / frames)

        samples = per(alternating({"one process": by_one, "all cores": lambda: recorded(all_cores)}, ROUNDS), frames)
    options = {"shape": f"a frame of {environment}", "dtype": "uint8"}
    record_forms("recording", samples, baseline="one process", paired=True, unit="s", **options)
    record("recording, CPU time", "one process", cpu[-ROUNDS:], unit="CPU s", **options)


def test_start(record, tmp_path, graphics):
    """From the command to a folder of one frame."""
    choices = dict(episodes=1, length=1, processes=1, force=True)
    seconds = apart(lambda: collect("cartpole_swingup", tmp_path / "out", **choices), 3, warm_up=1)
    record("recording, start", "one process", seconds, unit="s", shape="one frame of cartpole_swingup")
