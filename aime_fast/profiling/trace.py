"""What a Chrome trace of torch's profiler says about the phases of training steps."""

import gzip
import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aime_fast.errors import UserError
from aime_fast.profiling.phases import OCCASIONAL, is_phase
from aime_fast.profiling.spans import Interval, Span, gaps, innermost, length, overlap, union

ELSEWHERE = "elsewhere"
"""Host time of a step outside of all phases: the loop's own work."""
EARLIER = "earlier"
"""What a card still does for the steps before the first one."""
ON_A_CARD = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of what occupies a card; others are ranges around kernels."""
LAUNCHES = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class PhaseTimes:
    """The time of one phase over all steps of a trace, in microseconds."""

    name: str
    times: int
    """How often it was entered."""
    host: float
    """Time of its thread within it, and not within an inner phase."""
    device: float
    """Time in which something that it launched ran on the card; on a CPU, time of its operators."""
    launches: int
    """Kernels and copies that it launched; 0 on a CPU."""
    idle: float
    """Time within it in which the device did nothing: no kernel on the card, or no operator on the CPU."""
    largest: tuple[tuple[str, float], ...]
    """The kernels or operators with the most time in it, and their microseconds; an operator's without inner ones."""


@dataclass(frozen=True)
class Trace:
    """The steps of one training thread."""

    phases: list[Span]
    """Pieces of the training thread, disjoint, in order, with `ELSEWHERE` between them."""
    loading: list[Span]
    """The phases of other threads: reading of data."""
    busy: dict[str, list[Interval]]
    """When the device worked on each phase, disjoint, in order: kernels and copies on a card, operators on a CPU."""
    steps: list[Interval]
    """Each step, from the wait for its data to the next one's."""
    times: dict[str, PhaseTimes]
    """By phase, in the order in which they first begin."""
    on_card: bool

    @property
    def step_time(self) -> float:
        """Mean microseconds of a step, without what follows some steps only."""
        inside = sum(each.host for each in self.times.values() if each.name not in OCCASIONAL)
        return inside / len(self.steps)


def read_trace(path: Path) -> Trace:
    """The trace in a file that torch's profiler has written, gzipped or not; `UserError` where it has no steps."""
    packed = path.suffix == ".gz"
    text = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    return trace_of(json.loads(text.decode(errors="replace"), strict=False)["traceEvents"], str(path))


def trace_of(events: Iterable[Mapping[str, Any]], source: str = "the trace") -> Trace:
    """The training steps among the events of a Chrome trace; `UserError` where there are none.

    The first step of several is left out: nothing has read its data ahead.
    """
    by_kind: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X":
            by_kind[event.get("cat", "")].append(event)
    ranges: defaultdict[int, list[Span]] = defaultdict(list)
    for event in by_kind["user_annotation"]:
        if is_phase(event["name"]):
            ranges[event["tid"]].append(_span(event))
    trainers = [tid for tid, spans in ranges.items() if any(span.name == "wait" for span in spans)]
    if not trainers:
        raise UserError(f"{source} has no training step; record it with `aime-fast profile`")
    own = ranges.pop(trainers[0])
    waits = sorted(span.start for span in own if span.name == "wait")
    starts = waits[1:] or waits
    pieces = innermost(span for span in own if span.start >= starts[0])
    end = max(piece.end for piece in pieces)
    between = gaps([(piece.start, piece.end) for piece in pieces], starts[0], end)
    pieces = sorted([*pieces, *(Span(ELSEWHERE, *gap) for gap in between)], key=lambda piece: piece.start)
    loading = [span for spans in ranges.values() for span in spans if span.end > starts[0]]
    steps = list(zip(starts, [*starts[1:], end], strict=True))
    threads = {tid: innermost(spans) for tid, spans in ranges.items()}
    on_card = any(by_kind[kind] for kind in ON_A_CARD)
    work = list(_on_card(by_kind, pieces, threads) if on_card else _operators(by_kind["cpu_op"], trainers[0], pieces))
    entered = Counter(span.name for span in own if span.start >= starts[0])
    ran: defaultdict[str, list[Interval]] = defaultdict(list)
    for span, phase, _ in work:
        ran[phase].append((span.start, span.end))
    busy = {phase: union(intervals) for phase, intervals in ran.items()}
    times = _times(pieces, work, busy, entered | Counter({ELSEWHERE: len(steps)}), on_card)
    return Trace(pieces, loading, busy, steps, times, on_card)


def _span(event: Mapping[str, Any]) -> Span:
    return Span(event["name"], event["ts"], event["ts"] + event["dur"])


Work = tuple[Span, str, float]
"""What ran, the phase it belongs to, and its own microseconds."""


def _on_card(
    by_kind: Mapping[str, list[Mapping[str, Any]]], pieces: list[Span], threads: Mapping[int, list[Span]]
) -> Iterator[Work]:
    """Kernels and copies, each in the phase of its launch.

    autograd launches from a thread of its own, while the training thread waits in a phase.
    """
    launched = {e["args"]["correlation"]: e for k in LAUNCHES for e in by_kind[k] if "correlation" in e.get("args", {})}
    at_training, others = _Lookup(pieces), {tid: _Lookup(spans) for tid, spans in threads.items()}
    for kind in ON_A_CARD:
        for event in by_kind[kind]:
            launch = launched.get(event.get("args", {}).get("correlation"))
            time, own = (launch["ts"], others.get(launch["tid"])) if launch else (event["ts"], None)
            yield _span(event), (own and own(time)) or at_training(time) or EARLIER, event["dur"]


def _operators(events: list[Mapping[str, Any]], thread: int, pieces: list[Span]) -> Iterator[Work]:
    """Operators of the training thread, each with its own time and in its phase."""
    lookup, open_ = _Lookup(pieces), list[tuple[Span, list[float]]]()
    for span in sorted((_span(e) for e in events if e["tid"] == thread), key=lambda span: (span.start, -span.end)):
        while open_ and open_[-1][0].end <= span.start:
            yield from _closed(open_, lookup)
        if open_:
            open_[-1][1].append(span.end - span.start)
        open_.append((span, []))
    while open_:
        yield from _closed(open_, lookup)


def _closed(open_: list[tuple[Span, list[float]]], lookup: "_Lookup") -> Iterator[Work]:
    span, inner = open_.pop()
    name = lookup(span.start)
    if name is not None:
        yield span, name, span.end - span.start - sum(inner)


class _Lookup:
    """The piece at a time, among disjoint pieces in order."""

    def __init__(self, pieces: list[Span]) -> None:
        self._pieces, self._starts = pieces, [piece.start for piece in pieces]

    def __call__(self, time: float) -> str | None:
        """The name of the piece at this microsecond, or None."""
        index = bisect_right(self._starts, time) - 1
        return self._pieces[index].name if index >= 0 and time < self._pieces[index].end else None


def _times(
    pieces: list[Span],
    work: list[Work],
    busy: Mapping[str, list[Interval]],
    entered: Mapping[str, int],
    on_card: bool,
) -> dict[str, PhaseTimes]:
    own: defaultdict[str, list[Interval]] = defaultdict(list)
    for piece in pieces:
        own[piece.name].append((piece.start, piece.end))
    names: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for span, phase, alone in work:
        names[phase][span.name] += alone
    whole = union(interval for intervals in busy.values() for interval in intervals)
    return {
        phase: PhaseTimes(
            name=phase,
            times=entered[phase],
            host=length(intervals),
            device=length(busy.get(phase, ())),
            launches=sum(name == phase for _, name, _ in work) if on_card else 0,
            idle=length(intervals) - overlap(intervals, whole),
            largest=tuple(sorted(names[phase].items(), key=lambda item: -item[1])[:3]),
        )
        for phase, intervals in own.items()
    }
