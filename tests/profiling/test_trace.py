"""Times of a trace are those that were put into it: by phase, without what other threads do, on a CPU and a card."""

import gzip
import json

import made_traces
import pytest

from aime_fast.errors import UserError
from aime_fast.profiling.trace import ELSEWHERE, read_trace, trace_of


@pytest.fixture
def cpu():
    return trace_of(made_traces.on_a_cpu())


@pytest.fixture
def card():
    return trace_of(made_traces.on_a_card())


def test_the_first_step_is_left_out(cpu):
    assert cpu.steps == [(100, 200), (200, 350)]
    assert cpu.step_time == 100


def test_host_time_belongs_to_the_innermost_phase(cpu):
    host = {name: times.host / 2 for name, times in cpu.times.items() if name != "checkpoint"}
    assert host == {
        "wait": 5,
        "forward": 40,
        "backward": 2,
        "backward/elbo": 20,
        "backward/predictive": 10,
        "balance": 10,
        "step": 5,
        ELSEWHERE: 8,
    }
    assert cpu.times["checkpoint"].host == 50
    assert cpu.times["checkpoint"].times == 1


def test_operators_of_a_cpu(cpu):
    forward = cpu.times["forward"]
    assert (forward.device / 2, forward.idle / 2, forward.launches) == (30, 10, 0)
    assert dict(forward.largest) == {"inner": 30, "other": 20, "outer": 10}
    assert not cpu.on_card
    assert cpu.times["balance"].device == 0
    assert cpu.times["balance"].idle == cpu.times["balance"].host


def test_kernels_belong_to_the_phase_of_their_launch(card):
    device = {name: (times.device / 2, times.launches / 2) for name, times in card.times.items()}
    assert device["forward"] == (40, 2)
    assert device["backward/elbo"] == (20, 1)
    assert device["backward/predictive"] == (10, 1)
    assert device["balance"] == device["step"] == (0, 0)
    assert card.on_card


def test_a_copy_of_the_reader_is_no_work_of_the_step(card):
    assert sum(times.launches for times in card.times.values()) == 2 * 4
    assert card.busy["data"] == [(10, 20), (110, 120), (210, 220)]


def test_the_card_is_idle_where_nothing_runs(card):
    """It works from 10 to 90 of every 100 microseconds; 5 of `forward` come before, and `wait` and `step` are idle."""
    idle = {name: times.idle / len(card.steps) for name, times in card.times.items()}
    assert idle["wait"] == 5
    assert idle["forward"] == 5
    assert idle["backward/elbo"] == idle["balance"] == 0
    assert idle["step"] == 5


def test_a_file(tmp_path, cpu):
    content = json.dumps({"traceEvents": made_traces.on_a_cpu()}).encode()
    (tmp_path / "trace.json.gz").write_bytes(gzip.compress(content))
    (tmp_path / "trace.json").write_bytes(content)
    assert read_trace(tmp_path / "trace.json.gz") == read_trace(tmp_path / "trace.json") == cpu


def test_a_trace_without_steps(tmp_path):
    (tmp_path / "trace.json").write_text('{"traceEvents": []}')
    with pytest.raises(UserError, match=r"trace\.json has no training step; record it with `aime-fast profile`"):
        read_trace(tmp_path / "trace.json")
