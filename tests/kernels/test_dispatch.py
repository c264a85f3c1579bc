"""Which implementation runs: by device, by AIME_KERNELS and by the table of routes."""

import ast
import importlib
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch

import aime_kernels
from aime_kernels import dispatch, kumaraswamy_log_weights, mixture_log_density, routes, slot_attention
from aime_kernels.routes import ROUTES, Row

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
FOLDER = Path(aime_kernels.__file__).parent


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("AIME_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture(autouse=True)
def capability(monkeypatch):
    """A GPU of capability 9.0, whether this machine has one or not; a test may change the entry."""
    found = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[0])
    dispatch._obstacle_of_gpu.cache_clear()
    yield found
    dispatch._obstacle_of_gpu.cache_clear()


def call(obstacle=None, device=CUDA):
    """The implementation that `dispatch.call` takes for the operator `op`."""
    return dispatch.call("op", device, lambda x: "reference", lambda x: "triton", lambda x: obstacle, 1)


@pytest.mark.parametrize("mode", [None, "auto", "reference", "triton"])
def test_a_cpu_tensor_takes_the_reference(mode, monkeypatch):
    if mode:
        monkeypatch.setenv("AIME_KERNELS", mode)
    for op, row in ROUTES.items():
        assert dispatch.route(op, CPU) == ("native" if row.cpu == "native" and mode != "reference" else "reference")
    assert slot_attention(*(torch.randn(1, 2, 3) for _ in range(3)))[0].shape == (1, 2, 3)
    assert mixture_log_density(torch.ones(1, 1, 2), torch.zeros(1, 1), *torch.ones(2, 1, 1, 2))[0].shape == (1, 1)
    assert kumaraswamy_log_weights(torch.ones(3), torch.ones(3), torch.full((3,), 0.5)).shape == (4,)


def test_an_unknown_word_is_refused(monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", "cuda")
    with pytest.raises(ValueError, match="AIME_KERNELS is 'cuda'; use reference, triton or auto"):
        dispatch.route("rgb_gram", CUDA)


@pytest.mark.parametrize("mode", ["auto", "triton", "reference"])
def test_modes_on_cuda(mode, monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", mode)
    monkeypatch.setitem(ROUTES, "op", Row("triton", "reference", ""))
    assert dispatch.route("op", CUDA) == ("reference" if mode == "reference" else "triton")
    assert dispatch.route("op", torch.device("meta")) == "reference"


def no_triton(monkeypatch, capability):
    def fail(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(importlib, "import_module", fail)
    return "Triton cannot be imported (No module named 'triton')"


def no_compiler(monkeypatch, capability):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return "Triton finds no C compiler; install gcc"


def old_card(monkeypatch, capability):
    capability[0] = (7, 5)
    return "compute capability 7.5, the kernels need 8.0"


@pytest.mark.parametrize("lack", [no_triton, no_compiler, old_card])
def test_a_gpu_that_cannot_run_kernels_takes_the_references_and_says_why(lack, monkeypatch, capability):
    pytest.importorskip("triton")
    monkeypatch.setitem(ROUTES, "op", Row("triton", "reference", ""))
    assert dispatch.obstacle_of_device(CUDA) is None and call() == "triton"
    reason = lack(monkeypatch, capability)
    dispatch._obstacle_of_gpu.cache_clear()
    assert dispatch.obstacle_of_device(CUDA) == reason
    assert dispatch.obstacle_of_device(CPU) is None and dispatch.obstacle_of_device(torch.device("meta")) is None
    assert dispatch.route("op", CUDA) == "reference" and call() == "reference"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dispatch, "obstacle_of_device", lambda device: reason)
    assert dispatch.report()[-1] == f"no kernels: {reason}"
    monkeypatch.setenv("AIME_KERNELS", "triton")
    with pytest.raises(ValueError) as caught:
        call()
    assert f"op: no kernel for this call: {reason}; AIME_KERNELS=auto" in str(caught.value)


def test_the_interpreter_runs_kernels_on_a_cpu_only_on_demand(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.route("rgb_gram", CPU) == "reference"
    monkeypatch.setenv("AIME_KERNELS", "triton")
    assert {dispatch.route(op, CPU) for op in ROUTES} == {"triton"}


def test_an_obstacle_takes_the_reference_unless_the_kernel_is_demanded(monkeypatch):
    monkeypatch.setitem(ROUTES, "op", Row("triton", "reference", ""))
    assert call() == "triton" and call("too wide") == "reference" and call("too wide", CPU) == "reference"
    monkeypatch.setenv("AIME_KERNELS", "triton")
    assert call() == "triton"
    with pytest.raises(ValueError, match="op: no kernel for this call: too wide; AIME_KERNELS=auto"):
        call("too wide")


def test_every_operator_has_a_row_and_every_row_an_operator():
    called = {
        node.args[0].value
        for file in FOLDER.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("call", "route")
        if isinstance(node.args[0], ast.Constant)
    }
    assert called == set(ROUTES)
    for row in ROUTES.values():
        assert {row.cuda, row.cpu} <= set(get_args(routes.Route)) and row.note


def test_the_report_lists_every_operator_with_its_route(monkeypatch):
    first, *rest = dispatch.report()
    rest = [line for line in rest if not line.startswith("no kernels")]
    assert first == f"AIME_KERNELS=auto on {'cuda' if torch.cuda.is_available() else 'cpu'}"
    assert sorted(op for line in rest for op in line.partition(": ")[2].split(", ")) == sorted(ROUTES)
    monkeypatch.setenv("AIME_KERNELS", "reference")
    assert dispatch.report()[1] == f"reference: {', '.join(ROUTES)}"


def test_an_operator_call_writes_nothing_to_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    slot_attention(*(torch.randn(1, 2, 3) for _ in range(3)))
    dispatch.report()
    assert not list(tmp_path.iterdir())
