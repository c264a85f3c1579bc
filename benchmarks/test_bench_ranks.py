"""Two processes against one on two cores, of one global batch: seconds a step, and those that go to collectives.

Two processes do half a batch each, on one thread each. docs/recovery.md has the table as measured.
"""

import pytest
from measuring import run_json

PRESET, STEPS = "small", 5
LAYOUTS = {"1 x 1 plain": (1, 1, ""), "2 x 1 zero0": (2, 1, "zero0"), "2 x 1 zero2": (2, 1, "zero2")}
BASELINE = "1 x 2 plain"


def measured(processes, threads, engine):
    processes_of = 0 if not engine else processes
    found = run_json("benchmarks/rank_cost.py", PRESET, STEPS, threads, engine, processes=processes_of, threads=threads)
    assert (found["processes"], found["threads"]) == (processes, threads)
    return found


@pytest.fixture(scope="module")
def one_process():
    """Seconds a step of one process with two threads."""
    return measured(1, 2, "")["samples"]["seconds"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", LAYOUTS)
def test_ranks(record, one_process, form):
    found = measured(*LAYOUTS[form])
    seconds, options = found["samples"]["seconds"], {"unit": "s", "shape": f"{PRESET} B=8 T=16", "dtype": "float32"}
    record("step by several processes", BASELINE, one_process, **options)
    record("step by several processes", form, seconds, baseline=(BASELINE, one_process), **options)
    if found["processes"] > 1:
        waited, step = found["samples"]["in_collectives"], ("the step", seconds)
        record("wait for collectives", form, waited, baseline=step, paired=True, **options)
