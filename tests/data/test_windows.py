import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aime_fast.data.windows import WindowSampler, valid_starts
from aime_fast.errors import UserError

LENGTHS = [40, 16, 33, 5, 17]
STARTS = {(e, s) for e, n in enumerate(LENGTHS) for s in range(n - 16 + 1)}


def walk(sampler, steps, world_size=1, first=0):
    """Rows of the global batches of some steps, put together from the ranks' parts."""
    parts = [sampler.batch(s, r, world_size) for s in range(first, first + steps) for r in range(world_size)]
    return [tuple(row) for row in np.concatenate(parts).tolist()]


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(1, 20), st.integers(1, 20))
def test_valid_starts_are_those_counted_by_hand(lengths, window, stride):
    by_hand = [(e, s) for e, n in enumerate(lengths) for s in range(n) if s % stride == 0 and s + window <= n]
    assert [tuple(row) for row in valid_starts(lengths, window, stride).tolist()] == by_hand


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [3, 5, 7])
def test_each_cycle_holds_every_start_exactly_once(world_size, batch_size):
    sampler = WindowSampler(LENGTHS, 16, batch_size, seed=3)
    assert sampler.valid_windows == len(STARTS)
    cycles = 2 * batch_size
    windows = walk(sampler, cycles * len(STARTS) // batch_size, world_size)
    orders = [tuple(windows[i : i + len(STARTS)]) for i in range(0, len(windows), len(STARTS))]
    assert len(orders) == cycles
    assert all(len(order) == len(STARTS) and set(order) == STARTS for order in orders)
    assert len(set(orders)) == cycles, "an order came twice"


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_cut_one_global_batch(world_size):
    sampler = WindowSampler(LENGTHS, 16, 8, seed=1)
    assert walk(sampler, 20, world_size) == walk(sampler, 20)
    sizes = [len(sampler.batch(0, rank, world_size)) for rank in range(world_size)]
    assert max(sizes) - min(sizes) <= 1


def test_seed_and_step_alone_decide():
    used, fresh = WindowSampler(LENGTHS, 16, 8, seed=1), WindowSampler(LENGTHS, 16, 8, seed=1)
    walk(used, 37)
    assert walk(used, 5, first=11) == walk(fresh, 5, first=11)
    assert walk(WindowSampler(LENGTHS, 16, 8, seed=2), 5) != walk(fresh, 5)
    # What an epoch is called has no part in the order.
    assert walk(WindowSampler(LENGTHS, 16, 8, 1, window_stride=3, windows_per_epoch=9), 5) == walk(fresh, 5)


def test_the_order_is_the_one_promised_to_old_checkpoints():
    """Another order would break the resume of runs recorded before."""
    assert WindowSampler([100, 50], 16, 4, seed=0).batch(7).tolist() == [[0, 82], [1, 29], [0, 35], [0, 5]]


def test_starts_are_uniform():
    """Chi-square of the counts of the first fifth of many orders; the bound is 6 deviations of its distribution."""
    counts = np.zeros((len(LENGTHS), max(LENGTHS)))
    for seed in range(400):
        episode, start = WindowSampler(LENGTHS, 16, 9, seed).batch(0).T
        counts[episode, start] += 1
    seen = np.array([counts[start] for start in sorted(STARTS)])
    assert seen.sum() == counts.sum() == 3600
    expected = 3600 / len(STARTS)
    freedom = len(STARTS) - 1
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 6 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("stride", "stated", "windows"),
    [(0, 0, 2 + 1 + 2 + 1), (1, 0, 25 + 1 + 18 + 2), (5, 0, 5 + 1 + 4 + 1), (0, 77, 77)],
)
def test_an_epoch_has_the_windows_it_says(stride, stated, windows):
    sampler = WindowSampler(LENGTHS, 16, 4, 0, stride, stated)
    assert sampler.windows_per_epoch == windows
    assert sampler.steps_per_epoch == -(-windows // 4)
    assert sampler.short_episodes == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(sequence_length=41), "longest of 5 episodes has 40"),
        (dict(sequence_length=0), "sequence_length is 0"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(seed=-1), "seed is -1"),
        (dict(window_stride=-2), "window_stride is -2"),
        (dict(windows_per_epoch=-1), "windows_per_epoch is -1"),
        (dict(episode_lengths=[]), "longest of 0 episodes has 0"),
    ],
)
def test_impossible_windows_are_refused(arguments, words):
    defaults = dict(episode_lengths=LENGTHS, sequence_length=16, batch_size=4, seed=0)
    with pytest.raises(UserError, match=words):
        WindowSampler(**{**defaults, **arguments})


def test_a_rank_never_gets_an_empty_batch():
    with pytest.raises(UserError, match="less than the 5 processes"):
        WindowSampler(LENGTHS, 16, 4, 0).batch(0, 4, 5)
