"""Which implementation runs: by device, by AIME_KERNELS, by a measurement that is made once and kept."""

import json

import pytest
import torch

from aime_kernels import dispatch, kumaraswamy_log_weights, mixture_log_density, slot_attention

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No choice made yet, and a cache file of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AIME_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "_card", lambda device: "A card")
    forget(monkeypatch)


def forget(monkeypatch):
    monkeypatch.setattr(dispatch, "_choices", {})
    monkeypatch.setattr(dispatch, "_known", {})
    monkeypatch.setattr(dispatch, "_file_read", False)


@pytest.fixture
def clock(monkeypatch):
    """Replaces the timing: a candidate says how long it takes. Lists what was timed."""
    timed = []
    monkeypatch.setattr(dispatch, "_median_milliseconds", lambda trial, device: timed.append(trial()) or trial())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return timed


def trials(compiled, triton):
    return lambda: {"compiled": lambda: compiled, "triton": lambda: triton}


@pytest.mark.parametrize("mode", [None, "auto", "reference", "triton"])
def test_a_cpu_tensor_takes_the_reference(mode, monkeypatch):
    if mode:
        monkeypatch.setenv("AIME_KERNELS", mode)
    monkeypatch.setattr(dispatch, "route", lambda *_: pytest.fail("a CPU tensor was dispatched"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert slot_attention(*(torch.randn(1, 2, 3) for _ in range(3)))[0].shape == (1, 2, 3)
    assert mixture_log_density(torch.ones(1, 1, 2), torch.zeros(1, 1), *torch.ones(2, 1, 1, 2))[0].shape == (1, 1)
    assert kumaraswamy_log_weights(torch.ones(3), torch.ones(3), torch.full((3,), 0.5)).shape == (4,)


def test_an_unknown_word_is_refused(monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", "cuda")
    with pytest.raises(ValueError, match="AIME_KERNELS is 'cuda'; use reference, triton or auto"):
        dispatch.kernels_possible(CUDA)


@pytest.mark.parametrize("mode, possible", [("auto", True), ("triton", True), ("reference", False)])
def test_modes_on_cuda(mode, possible, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", mode)
    assert dispatch.kernels_possible(CUDA) is possible


def test_an_obstacle_falls_back_unless_the_kernel_is_demanded(monkeypatch, clock):
    assert dispatch.route("op", CUDA, "too wide", (1,), trials(1, 2)) == "reference"
    monkeypatch.setenv("AIME_KERNELS", "triton")
    with pytest.raises(ValueError, match="op: no kernel for this call: too wide; AIME_KERNELS=auto"):
        dispatch.route("op", CUDA, "too wide", (1,), trials(1, 2))
    assert dispatch.route("op", CUDA, None, (1,), trials(1, 2)) == "triton"
    assert clock == []


def test_the_faster_one_is_kept_by_class_process_and_file(monkeypatch, clock):
    assert dispatch.route("op", CUDA, None, (1,), trials(3.0, 2.0)) == "triton"
    assert dispatch.route("op", CUDA, None, (2,), trials(1.0, 2.0)) == "compiled"
    measured = len(clock)
    forget(monkeypatch)
    assert dispatch.route("op", CUDA, None, (1,), trials(1.0, 2.0)) == "triton"
    assert len(clock) == measured == 4
    lines = dispatch.report()
    assert lines[0].startswith("AIME_KERNELS=auto") and len(lines) == 3
    assert "A card|op|1|torch" in lines[1] and "triton (compiled 3.000 ms, triton 2.000 ms)" in lines[1]
    monkeypatch.setattr(dispatch, "_versions", lambda: "torch 9")
    monkeypatch.setattr(dispatch, "_known", {})
    assert dispatch.route("op", CUDA, None, (1,), trials(1.0, 2.0)) == "compiled"


@pytest.mark.parametrize("damage", ["{", "[1]", '{"a": 1}'])
def test_a_damaged_file_is_measured_again(damage, clock):
    dispatch.cache_file().parent.mkdir(parents=True)
    dispatch.cache_file().write_text(damage)
    assert dispatch.route("op", CUDA, None, (1,), trials(3.0, 2.0)) == "triton"
    assert len(json.loads(dispatch.cache_file().read_text())) == 1


def test_nothing_is_timed_while_a_graph_is_captured(monkeypatch, clock):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert dispatch.route("op", CUDA, None, (1,), trials(3.0, 2.0)) == "reference"
    assert clock == [] and not dispatch.cache_file().exists()


def test_the_compiled_candidate_equals_the_reference(monkeypatch):
    monkeypatch.setattr(dispatch, "route", lambda *_: "compiled")
    monkeypatch.setattr(torch, "compile", lambda function: lambda *inputs: ("compiled", function(*inputs)))
    chosen = dispatch.implementation("an op", torch.add, torch.sub, (torch.ones(1), torch.ones(1)), None, (1,), 2)
    assert chosen(torch.ones(1), torch.ones(1)) == ("compiled", torch.tensor([2.0]))
