"""What `Compilation` declares, names and tells, without compiling."""

import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.callback import CallbackArgs, CallbackTrigger

from aime_fast.training.compile import compilation
from aime_fast.training.compile.compilation import Compilation

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


class Part:
    compiled = ("forward", "_other")

    def forward(self):
        return "made"

    def _other(self):
        return "other"


class Small:
    compiled = ("decide",)
    compiled_gradients = False

    def decide(self):
        return "decided"


@pytest.fixture
def made(monkeypatch):
    """A compilation of two parts, whose regions are not compiled, and the lines that it tells."""
    monkeypatch.setattr(torch, "compile", lambda method, **_: method)
    monkeypatch.setattr(compilation, "TELL_EVERY", 0.02)
    made = Compilation({"part": Part(), "solver": Small(), "plain": SimpleNamespace()}, torch.device("cpu"))
    lines = []
    made.tell = lines.append
    yield made, lines
    made.close()


def start(made, compile_id, trigger=CallbackTrigger.DYNAMO):
    made._start(CallbackArgs(trigger, compile_id))


def test_regions_and_graphs_are_counted(made):
    """A region with gradients has two graphs."""
    assert (made[0].regions, made[0].expected) == (3, 5)
    assert list(made[0].owners) == ["part", "solver"]


def test_lines_name_the_region_and_its_gradients(made):
    made, lines = made
    assert made.owners["part"].forward() == "made"
    start(made, "0/0")
    made._end(None)
    made._told = 0.0
    start(made, "0/0", CallbackTrigger.LAZY_BACKWARD)
    made._end(None)
    assert lines[0].startswith("compiling 1 of 5: part.forward (0 s so far); kept in ")
    assert any(line.startswith("compiling 2 of 5: gradients of part.forward (") for line in lines)


def test_a_long_compilation_is_not_silent(made):
    made, lines = made
    made.owners["part"]._other()
    start(made, "1/0")
    deadline = time.monotonic() + 20
    while len(lines) < 3 and time.monotonic() < deadline:
        made._teller.join(0.01)
    made._end(None)
    assert len(lines) >= 3
    assert all(": part.other (" in line for line in lines)
    made._teller.join(20)
    assert not made._teller.is_alive(), "the thread ends when nothing is compiled"


def test_the_message_says_whether_the_cache_had_everything(made, monkeypatch):
    made, _ = made
    monkeypatch.setattr(compilation, "_misses", lambda: made._missed)
    start(made, "0/0")
    made._end(None)
    assert made.take_message().startswith("compiled code of 1 graphs, all from ")
    monkeypatch.setattr(compilation, "_misses", lambda: 7)
    start(made, "1/0")
    made._end(None)
    assert made.take_message().startswith("compiled 1 graphs again in ")
    assert made.take_message() is None
