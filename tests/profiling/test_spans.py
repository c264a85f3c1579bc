"""Unions, gaps, overlaps and innermost spans agree with counting small cells of time one by one."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aime_fast.profiling.spans import Span, gaps, innermost, length, overlap, union

END = 24
intervals = st.lists(st.tuples(st.integers(0, END), st.integers(0, END)).map(sorted).map(tuple), max_size=8)


def cells(many):
    """The cells [i, i + 1) that at least one interval covers."""
    return {cell for start, end in many for cell in range(start, end)}


@given(intervals, intervals)
def test_as_cells(one, other):
    assert cells(union(one)) == cells(one)
    assert length(one) == len(cells(one))
    assert cells(gaps(one, 3, 20)) == set(range(3, 20)) - cells(one)
    assert overlap(union(one), union(other)) == len(cells(one) & cells(other))


def nested(draw, start, end, depth):
    """Spans within [start, end) that follow one another or lie within one another."""
    spans = []
    while start < end:
        first = draw(st.integers(start, end))
        last = draw(st.integers(first, end))
        if last > first:
            spans.append(Span(f"{depth}:{first}-{last}", first, last))
            if depth:
                spans += nested(draw, first, last, depth - 1)
        start = last + 1
    return spans


@given(st.composite(lambda draw: nested(draw, 0, END, 2))())
def test_the_innermost_span_owns_each_cell(spans):
    """The innermost one is the shortest that covers the cell; equal ones were opened inside, so they are deeper."""
    pieces = innermost(spans)
    assert all(one.end <= other.start for one, other in pairwise(pieces))
    owner = {cell: piece.name for piece in pieces for cell in range(int(piece.start), int(piece.end))}
    assert set(owner) == cells((span.start, span.end) for span in spans)
    for cell, name in owner.items():
        open_ = [span for span in spans if span.start <= cell < span.end]
        shortest = min(span.end - span.start for span in open_)
        assert name in {span.name for span in open_ if span.end - span.start == shortest}
