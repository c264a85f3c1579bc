"""Cosines of successive gradients, from a sample, against those of the whole gradients."""

import math

import pytest
import torch

from aime_fast.balancing.layouts.cut import Cut, Piece
from aime_fast.balancing.layouts.sample import ENTRIES, Sample, cosines, stride

SMALL = [(7, 11), (1,), (64, 3)]
LARGE = [(700, 512), (513,), (40, 96), (1200, 192)]
"""All sizes sum to far more than a sample; the third parameter, a head, has under one entry in a hundred."""
HEAD = 2


def sample_of(shapes, tasks, cuts=None):
    sizes = {index: math.prod(shape) for index, shape in enumerate(shapes)}
    whole = [Cut((size,), (Piece(index, 0, 0, size),)) for index, size in sizes.items()]
    return Sample(whole if cuts is None else cuts, sizes, tasks, torch.device("cpu"))


def noise(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(math.prod(shape), generator=generator) for shape in shapes]


def steps(sample, *vectors, finite=True):
    """The cosines after the last of these steps of one task."""
    for vector in vectors:
        found = cosines(sample.products([vector]))
        sample.keep(torch.tensor(finite))
    return found.item()


def exact(one, other):
    a, b = torch.cat(one).double(), torch.cat(other).double()
    return (a @ b / (a.norm() * b.norm())).item()


def test_small_gradients_are_sampled_whole():
    one, other = noise(SMALL, 0), noise(SMALL, 1)
    assert steps(sample_of(SMALL, 1), one, other) == pytest.approx(exact(one, other), abs=1e-14)


def test_the_first_step_and_a_task_without_a_gradient_have_no_cosine():
    sample = sample_of(SMALL, 3)
    vectors = [noise(SMALL, 0), [None, *noise(SMALL, 1)[1:]], [None] * 3]
    assert cosines(sample.products(vectors)).tolist() == [0, 0, 0]
    sample.keep(torch.tensor(True))
    assert cosines(sample.products(vectors)).tolist() == [pytest.approx(1), pytest.approx(1), 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_skipped_step_is_left_out(value):
    sample, one, other = sample_of(SMALL, 1), noise(SMALL, 0), noise(SMALL, 1)
    steps(sample, one)
    assert steps(sample, [torch.full_like(part, value) for part in one], finite=False) == 0
    assert steps(sample, other) == pytest.approx(exact(one, other), abs=1e-14)


@pytest.mark.parametrize("scale", [1e-25, 1e25, 1e37])
def test_squares_do_not_leave_the_range(scale):
    one, other = ([scale * part for part in noise(SMALL, seed)] for seed in (0, 1))
    assert steps(sample_of(SMALL, 1), one, other) == pytest.approx(exact(one, other), abs=1e-6)


@pytest.mark.parametrize("rows", [None, 3])
def test_a_swing_in_one_matrix_is_seen(rows):
    """The same rank-1 pattern with the other sign each step, in the head or some of its rows, on steady noise."""
    shape = LARGE[HEAD]
    pattern = torch.outer(torch.linspace(0.5, 1.5, shape[0]), torch.ones(shape[1]))
    if rows is not None:
        pattern[rows:] = 0
    steady, swing = noise(LARGE, 0), 3000 * pattern.flatten() / pattern.norm()
    up, down = list(steady), list(steady)
    up[HEAD], down[HEAD] = steady[HEAD] + swing, steady[HEAD] - swing
    assert exact(up, down) < -0.85
    assert steps(sample_of(LARGE, 1), up, down) == pytest.approx(exact(up, down), abs=0.05)


@pytest.mark.parametrize("agreement", [-0.9, 0.0, 0.5])
def test_a_cosine_of_large_gradients_is_estimated(agreement):
    one, fresh = noise(LARGE, 0), noise(LARGE, 1)
    other = [agreement * a + math.sqrt(1 - agreement**2) * b for a, b in zip(one, fresh, strict=True)]
    # Some 49,000 of 600,000 entries with weights: the deviation is about 1/sqrt(30,000).
    assert steps(sample_of(LARGE, 1), one, other) == pytest.approx(exact(one, other), abs=5 / math.sqrt(30_000))


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_hold_the_sample_of_the_whole_together(shards):
    """Each parameter is cut by itself, as ZeRO-3 does, or the row of all of them is, as ZeRO-1 does."""
    one, other = noise(LARGE, 0), noise(LARGE, 1)
    whole = sample_of(LARGE, 1)
    whole.products([one])
    whole.keep(torch.tensor(True))
    expected = whole.products([other])
    ends = torch.tensor([0, *(len(part) for part in one)]).cumsum(0).tolist()
    length = -(-ends[-1] // shards)
    for by_parameter in (True, False):
        total = torch.zeros_like(expected)
        for rank in range(shards):
            pieces, parts = [], ([], [])
            for index, size in enumerate(map(len, one)):
                part = -(-size // shards)
                low, high = (rank * part, (rank + 1) * part) if by_parameter else (rank * length - ends[index],) * 2
                high = high if by_parameter else high + length
                low, high = max(low, 0), min(high, size)
                if low < high:
                    pieces.append(Piece(index, low, sum(map(len, parts[0])), high - low))
                    parts[0].append(one[index][low:high])
                    parts[1].append(other[index][low:high])
            flats = [torch.cat(part) for part in parts]
            sample = sample_of(LARGE, 1, [Cut((len(flats[0]),), tuple(pieces))])
            sample.products([[flats[0]]])
            sample.keep(torch.tensor(True))
            total += sample.products([[flats[1]]])
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("columns", [64, 96, 105, 512, 768])
def test_every_row_and_column_is_sampled(columns):
    size, most = 640 * columns, 2 * max(columns, 640)
    taken = torch.arange(0, size, stride(size, most))
    assert most / 2 < len(taken) <= most
    assert len(set((taken // columns).tolist())) > 0.8 * min(640, len(taken))
    assert len(set((taken % columns).tolist())) == columns


def test_a_task_s_sample_is_small_whatever_the_model():
    for shapes in (LARGE, [(3,)] * 400, [(10**8,), (5,)]):
        sizes = {index: math.prod(shape) for index, shape in enumerate(shapes)}
        cuts = [Cut((size,), (Piece(index, 0, 0, size),)) for index, size in sizes.items()]
        assert Sample(cuts, sizes, 1, torch.device("cpu")).samples.shape[2] <= ENTRIES


def test_a_saved_sample_goes_on_and_one_of_other_entries_does_not():
    one, other = noise(LARGE, 0), noise(LARGE, 1)
    sample = sample_of(LARGE, 1)
    steps(sample, one)
    state = sample.state_dict()
    again = sample_of(LARGE, 1)
    again.load_state_dict(state)
    assert steps(again, other) == steps(sample, other)
    whole = [Cut((math.prod(shape),), (Piece(index, 0, 0, math.prod(shape)),)) for index, shape in enumerate(LARGE)]
    backwards = sample_of(LARGE, 1, whole[::-1])
    backwards.load_state_dict(state)
    assert not backwards.samples.any()
