"""What the ranges of the phases cost a step: none at all, ranges that nobody records, and NVTX ranges without a tool.

Steps of `debug`, the shortest there are, so that a range is the largest part of one; the forms alternate. A range is
also timed alone: its time, times the ranges of a step, is a part of a step that no other load can hide. That part must
be under 1 %.
"""

import statistics
from contextlib import contextmanager, nullcontext

import pytest
from measuring import alternating, apart, threads

from aime_fast import DMCVBTrainer
from aime_fast.profiling.phases import mark_phases, phase, unmark_phases
from aime_fast.training import prefetcher, step
from aime_fast.training.engines import engine

MODULES = (prefetcher, step, engine)
"""Where a step opens phases."""
MOST = 0.01
RANGES = 2000


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


FORMS = {"no ranges": lambda: opened_by(lambda name: nullcontext()), "not recorded": nullcontext, "NVTX": nvtx_ranges}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rounds", [pytest.param(8, id="quick", marks=pytest.mark.quick), 40])
def test_ranges_of_a_step(record_forms, record, tmp_path, rounds):
    trainer = DMCVBTrainer(preset="debug", steps=8, out=str(tmp_path / "run"), compile="off")
    inputs = trainer.step.fetch(0)

    def form(context):
        def call():
            with context():
                trainer.step(inputs, 0.5)

        return call

    with threads(2):
        samples = alternating({name: form(context) for name, context in FORMS.items()}, rounds)
        names = []
        with opened_by(lambda name: names.append(name) or phase(name)):
            trainer.step(trainer.step.fetch(0), 0.5)
        trainer.close()
    loader = trainer.config.loader
    shape = f"debug, B={loader.batch_size}, T={loader.sequence_length}"
    record_forms("step with its phases", samples, baseline="no ranges", paired=True, unit="s", shape=shape)
    whole = statistics.median(samples["no ranges"])
    for name in ("not recorded", "NVTX"):
        with FORMS[name]():
            ranges = [len(names) * seconds / RANGES for seconds in apart(_ranges, 9)]
        record(
            f"the {len(names)} ranges of a step alone",
            name,
            ranges,
            unit="s",
            shape=shape,
            baseline=("a step", [whole]),
        )
        assert min(ranges) < MOST * whole


def _ranges():
    for _ in range(RANGES):
        with phase("forward"):
            pass
