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
    factor = stats.t.ppf(0.975, 19) / stats.norm.ppf(0.975) * np.sqrt(20 / 19)
    low, high = (found.mean + factor * (end - found.mean) for end in expected)
    # Two quantiles of 2000 resamples of a mean with standard error 0.45: each is known to about 0.03.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12)


@pytest.mark.parametrize("episodes", [2, 3, 6, 12, 30])
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover_the_truth_as_often_as_they_say(episodes, skewed):
    """Data sets of episodes of 1 to 6 windows that resemble each other, as the windows of one episode do."""
    draw, hits = np.random.default_rng(episodes), 0
    for _ in range(200):
        windows = draw.integers(1, 7, episodes)
        # Mean 0, variance 1.
        levels = draw.exponential(1, episodes) - 1 if skewed else draw.normal(0, 1, episodes)
        values = levels.repeat(windows) + draw.normal(0, 0.5, windows.sum())
        found = mean_over(values, np.arange(episodes).repeat(windows))
        hits += found.low <= 0 <= found.high
    # Skewed episodes are the hard case of every interval of a mean.
    assert (170 if skewed else 180) <= hits <= 199


def test_paired_intervals_are_narrower_where_runs_agree_about_what_is_hard():
    draw = np.random.default_rng(0)
    hard, episodes = draw.normal(0, 3, 12).repeat(5), np.arange(12).repeat(5)
    a, b = (mean_over(shift + hard + draw.normal(0, 0.3, 60), episodes) for shift in (25.0, 24.0))
    difference = a.minus(b)
    assert difference.mean == pytest.approx(a.mean - b.mean)
    unpaired = np.hypot(a.high - a.low, b.high - b.low)
    assert difference.high - difference.low < unpaired / 5
    assert difference.low > 0, "a decibel shows, although each run is only known to two"


def test_paired_intervals_cover():
    draw, hits = np.random.default_rng(0), 0
    for _ in range(200):
        hard, episodes = draw.normal(0, 3, 6).repeat(4), np.arange(6).repeat(4)
        a, b = (mean_over(shift + hard + draw.normal(0, 1, 24), episodes) for shift in (1.0, 0.0))
        found = a.minus(b)
        hits += found.low <= 1 <= found.high
    assert 180 <= hits <= 199


def test_other_windows_have_no_difference():
    a, b = mean_over(np.ones(4), np.array([0, 0, 1, 1])), mean_over(np.ones(4), np.array([0, 1, 1, 1]))
    assert a.minus(b) is None
    assert ratio_of(np.array([]), np.array([])).minus(a) is None


def test_windows_of_one_episode_are_drawn_together():
    """The interval of 5 episodes of 100 equal windows is that of 5 numbers, not of 500."""
    five = np.array([1.0, 2.0, 4.0, 8.0, 9.0])
    one, many = mean_over(five, np.arange(5)), mean_over(five.repeat(100), np.arange(5).repeat(100))
    assert (many.mean, many.low, many.high) == pytest.approx((one.mean, one.low, one.high))


def test_episodes_of_different_sizes_weigh_as_their_windows():
    values, episodes = np.array([1.0, 1.0, 1.0, 5.0]), np.array([3, 3, 3, 7])
    found = mean_over(values, episodes)
    assert found.mean == 2.0
    assert (found.sums, found.counts) == ([3.0, 5.0], [3.0, 1.0])
    assert found.low <= 1.0 and found.high >= 5.0, "two episodes say little"


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
