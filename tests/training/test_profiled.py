"""What a profile does on a card, with stand-ins: the phase of a replay, and the snapshot of memory."""

import inspect
import pickle

import pytest
import torch
from fake_graph import captured_trainer
from recording import tiny_options, write_recording

from aime_fast.profiling.phases import phase
from aime_fast.training import prefetcher, profiled, step
from aime_fast.training.compile import graph_capture
from aime_fast.training.compile.graph_capture import WARM_UP
from aime_fast.training.engines import engine

CARD = torch.device("cuda", 0)


def test_a_replayed_step_is_one_phase(tmp_path, monkeypatch):
    """The capture records the launches of all phases; a replay runs none of them."""
    names = []
    for module in (prefetcher, step, engine, graph_capture):
        monkeypatch.setattr(module, "phase", lambda name: names.append(name) or phase(name))
    data = write_recording(tmp_path / "recording.pt")
    trainer, _ = captured_trainer(monkeypatch, tiny_options(data, tmp_path / "run"))
    for index in range(WARM_UP + 2):
        names.clear()
        trainer.step(trainer.step.fetch(index), 0.5)
        assert ("replay" in names) == (index >= WARM_UP)
    trainer.close()


@pytest.fixture
def history(monkeypatch):
    """Calls of torch's recorder of a card's memory; their arguments fit the real functions."""
    calls = []
    record, dump = torch.cuda.memory._record_memory_history, torch.cuda.memory._dump_snapshot

    def recorded(*args, **kwargs):
        inspect.signature(record).bind(*args, **kwargs)
        calls.append("off" if kwargs.get("enabled", "all") is None else "on")

    def dumped(*args, **kwargs):
        path = inspect.signature(dump).bind(*args, **kwargs).args[0]
        calls.append("snapshot")
        with open(path, "wb") as file:
            pickle.dump({}, file)

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", recorded)
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", dumped)
    return calls


def test_the_memory_of_a_card_is_recorded_and_then_no_more(history, tmp_path):
    with profiled._memory_history(CARD, tmp_path / "memory.pickle"):
        history.append("steps")
    assert history == ["on", "steps", "snapshot", "off"]
    assert (tmp_path / "memory.pickle").is_file()


def test_recording_of_memory_ends_after_an_error(history, tmp_path):
    with pytest.raises(RuntimeError), profiled._memory_history(CARD, tmp_path / "memory.pickle"):
        raise RuntimeError("no memory left")
    assert history == ["on", "off"]


def test_a_cpu_has_no_snapshot(history, tmp_path):
    with profiled._memory_history(torch.device("cpu"), tmp_path / "memory.pickle"):
        pass
    assert history == []


def test_only_replayed_steps_are_recorded(tmp_path, monkeypatch):
    """However few steps of warm-up are asked for."""
    data = write_recording(tmp_path / "recording.pt")
    trainer, recorder = captured_trainer(monkeypatch, tiny_options(data, tmp_path / "run"))
    assert profiled._warmed_up(trainer, 1) == trainer.progress.step == WARM_UP + 1
    assert recorder.calls.count("capture") == 1
    trainer.close()
