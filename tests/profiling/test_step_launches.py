"""A training step starts no more kernels than stated, as written and compiled."""

import shutil

import pytest
from launches import compiled_launches_of, launches_of


@pytest.mark.parametrize("preset, most", [("small", 1441), ("paper", 1453)])
def test_launches_of_a_step_as_written(preset, most):
    """The number depends on the structure of the model, not on the batch."""
    phases = launches_of(preset, batch_size=1).by_phase()
    assert sum(phases.values()) <= most, phases


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
def test_launches_of_a_compiled_step():
    """The target is 450 (docs/performance.md says what is between)."""
    phases = compiled_launches_of("small", batch_size=1).by_phase()
    assert sum(phases.values()) <= 1140, phases
