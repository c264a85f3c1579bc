"""Spans of time in microseconds: unions, gaps and overlaps, and which of several nested spans is innermost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Interval = tuple[float, float]
"""Start and end in microseconds."""


@dataclass(frozen=True)
class Span:
    """Something that began and ended."""

    name: str
    start: float
    """Microseconds."""
    end: float
    """Microseconds."""


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as disjoint intervals in order."""
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def length(intervals: Iterable[Interval]) -> float:
    """Microseconds in which at least one of them is open."""
    return sum(end - start for start, end in union(intervals))


def gaps(intervals: Iterable[Interval], start: float, end: float) -> list[Interval]:
    """The time between `start` and `end` in which none of them is open."""
    found, reached = [], start
    for first, last in union(intervals):
        if first > reached:
            found.append((reached, min(first, end)))
        reached = max(reached, last)
        if reached >= end:
            return [gap for gap in found if gap[1] > gap[0]]
    return [gap for gap in [*found, (reached, end)] if gap[1] > gap[0]]


def overlap(one: Sequence[Interval], other: Sequence[Interval]) -> float:
    """Microseconds that lie in both; each is disjoint and in order."""
    total, i, j = 0.0, 0, 0
    while i < len(one) and j < len(other):
        total += max(0.0, min(one[i][1], other[j][1]) - max(one[i][0], other[j][0]))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return total


def innermost(spans: Iterable[Span]) -> list[Span]:
    """Nested spans of one thread as disjoint pieces in order, each named after the innermost span that is open."""
    pieces: list[Span] = []
    open_: list[Span] = []
    reached = 0.0

    def close(until: float) -> None:
        nonlocal reached
        while open_ and open_[-1].end <= until:
            piece(open_.pop())
        if open_ and until > reached:
            pieces.append(Span(open_[-1].name, reached, until))

    def piece(span: Span) -> None:
        nonlocal reached
        if span.end > reached:
            pieces.append(Span(span.name, reached, span.end))
            reached = span.end

    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        close(span.start)
        reached = span.start
        open_.append(span)
    close(float("inf"))
    return pieces
