"""A phase is a range of torch's profiler always, and one of NVTX while asked; errors close it too."""

import sys
import threading
from contextlib import contextmanager

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from aime_fast import DMCVBTrainer
from aime_fast.errors import UserError
from aime_fast.profiling import phases
from aime_fast.profiling.phases import is_phase, mark_phases, phase

NAMES = {
    *("data", "wait", "forward", "backward", "balance", "step", "averages", "log", "validation", "checkpoint"),
    *(f"backward/{task}" for task in ("elbo", "perceiver", "predictive")),
}
"""All phases of a run as written on one process."""


class Recorder:
    """Marks that remember what was pushed and popped on each thread."""

    def __init__(self):
        self.seen, self.depth = [], {}

    def push(self, name):
        self.seen.append(name)
        self.depth[threading.get_ident()] = self.depth.get(threading.get_ident(), 0) + 1

    def pop(self):
        self.depth[threading.get_ident()] -= 1

    @contextmanager
    def spanning(self, name):
        yield


@pytest.fixture
def marks(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(phases, "_marks", made)
    return made


def test_a_run_has_all_phases(marks, tmp_path):
    """Of NVTX and of torch's profiler, which sees them on all threads."""
    trainer = DMCVBTrainer(preset="debug", steps=2, out=str(tmp_path / "run"), compile="off")
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True, experimental_config=everywhere) as profiled:
        trainer.fit()
    trainer.close()
    assert set(marks.seen) == NAMES
    assert set(marks.depth.values()) == {0}
    recorded = {event.name() for event in profiled.profiler.kineto_results.events() if event.is_user_annotation()}
    assert {name for name in recorded if is_phase(name)} == NAMES
    assert "Optimizer.step#AdamW.step" in recorded


def test_an_error_closes_a_phase(marks):
    with pytest.raises(ValueError), phase("outer"), phase("inner"):
        raise ValueError
    assert marks.seen == ["outer", "inner"]
    assert set(marks.depth.values()) == {0}


def test_a_phase_is_a_range_of_torch_with_and_without_marks(monkeypatch):
    for marks in (None, Recorder()):
        monkeypatch.setattr(phases, "_marks", marks)
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled, phase("here"):
            torch.ones(2) + 1
        assert "here" in {event.key for event in profiled.key_averages()}


def test_without_nvtx(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"package nvtx where torch has no GPU: pip install 'aime-fast\[profile\]'"):
        mark_phases()
    assert phases._marks is None
