"""What the ranges of the phases cost a step: none at all, ranges that nobody records, and NVTX ranges.

Run with `make bench ARGS="-s benchmarks/test_bench_ranges.py"`. Steps of `debug`, the shortest there are, so that a
range is the largest part of one. The forms take turns in one run; ratios are of medians. A range is also timed alone:
its microseconds times the ranges of a step are a part of a step that no other load can hide.
"""

import statistics
import sys
from contextlib import contextmanager, nullcontext
from time import perf_counter

import pytest
from measuring import in_turn, two_threads

from aime_fast import DMCVBTrainer
from aime_fast.profiling import phases
from aime_fast.profiling.phases import mark_phases, phase, unmark_phases
from aime_fast.training import prefetcher, step
from aime_fast.training.engines import engine

MODULES = (prefetcher, step, engine)
"""Where a step opens phases."""


@contextmanager
def opened_by(function):
    """Phases of a step are opened by `function`."""
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            patch.setattr(module, "phase", function)
        yield


@contextmanager
def nvtx_ranges():
    mark_phases()
    try:
        yield
    finally:
        unmark_phases()


FORMS = {
    "none": lambda: opened_by(lambda name: nullcontext()),
    "off": nullcontext,
    "on": nvtx_ranges,
}


def test_a_step_with_and_without_ranges(benchmark, tmp_path):
    """Ranges that nobody records, and NVTX ranges without a tool, are under 1 % of the shortest step."""
    with two_threads():
        trainer = DMCVBTrainer(preset="debug", steps=8, out=str(tmp_path / "run"), compile="off")

        def form(context):
            def call():
                with context():
                    trainer.step(trainer.step.fetch(0), 0.5)

            return call

        seconds, medians = in_turn(benchmark, {name: form(make) for name, make in FORMS.items()}, 40)
        names = []
        with opened_by(lambda name: names.append(name) or phase(name)):
            trainer.step(trainer.step.fetch(0), 0.5)
        trainer.close()
    alone = {}
    for name in ("off", "on"):
        with FORMS[name]():
            alone[name] = _range_seconds()
    shares = {name: len(names) * each / medians["none"] for name, each in alone.items()}
    ratios = {
        name: statistics.median(x / y for x, y in zip(seconds[name], seconds["none"], strict=True)) for name in shares
    }
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info |= {
        "ms_a_step": {name: round(1e3 * value, 2) for name, value in medians.items()},
        "ratio_to_none": {name: round(value, 4) for name, value in ratios.items()},
        "ranges_a_step": len(names),
        "microseconds_a_range": {name: round(1e6 * value, 2) for name, value in alone.items()},
        "share_of_a_step": {name: round(value, 5) for name, value in shares.items()},
        "target": {"share_of_a_step": 0.01},
    }
    print(benchmark.extra_info, file=sys.stderr)
    assert phases._marks is None
    assert all(share < 0.01 for share in shares.values())


def _range_seconds(count=2000, rounds=9):
    """Seconds of one range: the fastest of some rounds, because other load only adds."""
    found = []
    for _ in range(rounds):
        start = perf_counter()
        for _ in range(count):
            with phase("forward"):
                pass
        found.append((perf_counter() - start) / count)
    return min(found)
