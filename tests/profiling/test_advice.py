"""Advice is about the three largest items, names the figure it rests on, and follows from how the run is set."""

from dataclasses import replace

import made_traces
import pytest

from aime_fast.profiling.advice import Setting, advice, largest_items
from aime_fast.profiling.report import Peak, make_profile, table
from aime_fast.profiling.trace import trace_of
from aime_fast.profiling.work import Work

EVERY = {"log": 10, "validation": 100, "checkpoint": 200}
PLAIN = Setting(compiled=False, captured=False, bf16=False, threads=1, cores=2, every=EVERY)
CARD = Peak("a card", flops=1e12, bytes=1e11)


def profile_of(events, peak=None, joined=False, flops=0.0, size=0.0):
    """Work of `forward` only; a step takes 0.09 ms without the profiler and 0.1 ms under it."""
    return make_profile("made", trace_of(events), {"forward": Work(flops, size, 2)}, 0.09, joined, peak)


def test_items_are_sorted_and_share_out_what_follows_some_steps():
    items = largest_items(profile_of(made_traces.on_a_cpu()), PLAIN, count=9)
    assert [item.ms for item in items] == sorted((item.ms for item in items), reverse=True)
    found = {item.what: item.ms for item in items}
    assert found["between operators"] == pytest.approx(0.065)
    assert found["forward"] == pytest.approx(0.030)
    assert found["waiting for data"] == pytest.approx(0.005)
    assert found["checkpoint"] == pytest.approx(0.050 / 200)
    assert len(advice(profile_of(made_traces.on_a_cpu()), PLAIN).splitlines()) == 4


def test_threads_and_compilation_are_proposed_where_they_are_not_used():
    said = advice(profile_of(made_traces.on_a_cpu()), PLAIN)
    assert "It runs on 1 of 2 cores: --threads 2 uses all." in said
    assert "--compile on joins operators. The profiler adds 0.0 ms itself." in said
    said = advice(profile_of(made_traces.on_a_cpu()), replace(PLAIN, threads=2, compiled=True))
    assert "uses all" not in said and "--compile" not in said


def test_a_slow_reader_is_named():
    events = made_traces.on_a_cpu()
    for event in events:
        if event["name"] == "data":
            event["dur"] = 300
    waiting = [item for item in largest_items(profile_of(events), PLAIN, 9) if item.what == "waiting for data"]
    assert "A batch is read in 0.3 ms, longer than the rest of a step" in waiting[0].do


@pytest.mark.parametrize(
    "flops, size, said",
    [
        (0.9e12 * 40e-6, 0, "Its products reach 90% of the peak: --optim.precision bf16"),
        (0, 0.8e11 * 40e-6, "Its memory traffic reaches 80% of the peak: --compile on"),
        (
            0.1e12 * 40e-6,
            0.2e11 * 40e-6,
            "It reaches 10% of the products' peak and 20% of the memory's, with kernels of",
        ),
    ],
)
def test_what_bounds_a_phase_on_a_card(flops, size, said):
    """`forward` occupies the card for 40 microseconds."""
    profile = profile_of(made_traces.on_a_card(), CARD, flops=flops, size=size)
    assert said in largest_items(profile, PLAIN)[0].do
    assert largest_items(profile, PLAIN)[0].what == "forward"


def test_the_idle_card():
    profile = profile_of(made_traces.on_a_card(), CARD)
    idle = {item.what: item.do for item in largest_items(profile, PLAIN, 9)}["the card idle"]
    assert "--cuda-graph auto replays all launches, --compile on makes fewer" in idle
    captured = largest_items(profile, replace(PLAIN, captured=True), 9)
    assert "one launch already" in {item.what: item.do for item in captured}["the card idle"]


def test_no_bound_is_named_where_the_peak_is_unknown():
    said = largest_items(profile_of(made_traces.on_a_card(), None, flops=1e6), PLAIN)[0].do
    assert "the peak of this card is not known" in said


def test_the_table_of_a_card():
    text = table(profile_of(made_traces.on_a_card(), CARD, flops=0.5e12 * 40e-6, size=0.25e11 * 40e-6))
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert lines["forward"] == ["0.04", "0.04", "0.01", "2", "500.0", "50%", "25.0", "25%"]
    assert "card ms" in text and "of peak" in text
    assert "Peak of a card: 1.0 TFLOP/s, 100 GB/s." in text


def test_joined_operators_have_no_bytes():
    """Compiled code keeps intermediate results out of memory, so what was counted as written is too much."""
    profile = profile_of(made_traces.on_a_card(), CARD, joined=True, flops=1e6, size=1e6)
    assert [(row.flops > 0, row.bytes) for row in profile.rows if row.phase == "forward"] == [(True, None)]
