"""Means over windows with bootstrap intervals over episodes.

Windows of one episode resemble each other, so episodes are drawn, not windows (Efron & Tibshirani 1993, chapter 13).
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES, LEVEL, SEED = 2000, 0.95, 0


@dataclass(frozen=True)
class Estimate:
    """A ratio of two sums over windows, such as a mean (sum over count), and its 95 % interval.

    nan if there is nothing to average; the interval is nan for a single episode.
    """

    mean: float
    low: float
    high: float
    sums: list[float]
    """Numerator of each episode."""
    counts: list[float]
    """Denominator of each episode: the number of windows, if this is a mean."""

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if np.isnan(self.low) else f"{self.mean:.2f} ±{(self.high - self.low) / 2:.2f}"


def mean_over(values: np.ndarray, episodes: np.ndarray) -> Estimate:
    """The mean of `values` [W], whose windows are of `episodes` int64 [W]; nan values are left out."""
    known = ~np.isnan(values)
    return ratio_over(np.where(known, values, 0.0), known.astype(float), episodes)


def ratio_over(numerators: np.ndarray, denominators: np.ndarray, episodes: np.ndarray) -> Estimate:
    """The sum of numerators [W] over the sum of denominators [W], of windows of `episodes` int64 [W]."""
    _, place = np.unique(episodes, return_inverse=True)
    return ratio_of(*(np.bincount(place, weights=part.astype(float)) for part in (numerators, denominators)))


def ratio_of(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """The estimate from the numerator and denominator of each episode, [E]."""
    low, high = np.nan, np.nan
    if len(sums) > 1 and counts.sum():
        drawn = np.random.default_rng(SEED).integers(0, len(sums), (RESAMPLES, len(sums)))
        low, high = _quantiles(sums[drawn].sum(1), counts[drawn].sum(1))
    mean = float(sums.sum() / counts.sum()) if counts.sum() else np.nan
    return Estimate(mean, low, high, sums.tolist(), counts.tolist())


def _quantiles(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Bounds of the middle `LEVEL` of the resampled ratios; resamples without a window are left out."""
    ratios = sums[counts != 0] / counts[counts != 0]
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
