"""Means and intervals against NumPy and SciPy."""

import numpy as np
import pytest
from scipy import stats

from aime_fast.evaluation.intervals import mean_over, ratio_of, ratio_over


def test_the_interval_is_that_of_a_bootstrap_over_episodes():
    draw = np.random.default_rng(1)
    values = draw.normal(30, 2, 20)
    found = mean_over(values, np.arange(20))
    expected = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=0).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    # Two quantiles of 2000 resamples of a mean with standard error 0.45: each is known to about 0.03.
    assert found.low == pytest.approx(expected.low, abs=0.12)
    assert found.high == pytest.approx(expected.high, abs=0.12)


def test_windows_of_one_episode_are_drawn_together():
    """The interval of 5 episodes of 100 equal windows is that of 5 numbers, not of 500."""
    five = np.array([1.0, 2.0, 4.0, 8.0, 9.0])
    one, many = mean_over(five, np.arange(5)), mean_over(five.repeat(100), np.arange(5).repeat(100))
    assert (many.mean, many.low, many.high) == pytest.approx((one.mean, one.low, one.high))


def test_it_covers_the_truth_as_often_as_it_says():
    draw, hits = np.random.default_rng(0), 0
    for _ in range(200):
        values = draw.normal(0, 1, 30)
        found = mean_over(values, np.arange(30))
        hits += found.low <= 0 <= found.high
    # 95 % of 200 is 190; a percentile bootstrap of 30 covers slightly less (about 93.5 %), give or take 3.5.
    assert 176 <= hits <= 198


def test_episodes_of_different_sizes_weigh_as_their_windows():
    values, episodes = np.array([1.0, 1.0, 1.0, 5.0]), np.array([3, 3, 3, 7])
    found = mean_over(values, episodes)
    assert found.mean == 2.0
    assert (found.sums, found.counts) == ([3.0, 5.0], [3.0, 1.0])
    assert 1.0 <= found.low <= 2.0 <= found.high <= 5.0


def test_a_ratio_is_of_the_sums():
    found = ratio_over(np.array([1.0, 3.0]), np.array([2.0, 6.0]), np.array([0, 1]))
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_unknown_values_are_left_out():
    found = mean_over(np.array([1.0, np.nan, 3.0]), np.array([0, 0, 1]))
    assert (found.mean, found.counts) == (2.0, [1.0, 1.0])
    nothing = mean_over(np.full(3, np.nan), np.arange(3))
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


def test_one_episode_has_no_interval():
    found = mean_over(np.array([1.0, 2.0]), np.zeros(2, int))
    assert found.mean == 1.5 and np.isnan(found.low) and np.isnan(found.high)
    assert str(found) == "1.50"


def test_it_is_the_same_each_time():
    sums, counts = np.array([1.0, 5.0, 2.0]), np.array([2.0, 2.0, 3.0])
    assert ratio_of(sums, counts) == ratio_of(sums, counts)
