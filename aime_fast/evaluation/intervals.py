"""Means over windows with bootstrap intervals over episodes.

Windows of one episode resemble each other, so episodes are drawn, not windows (Efron & Tibshirani 1993, chapter 13).
The percentile interval of few episodes is too narrow: resamples vary by (n-1)/n of the variance, and the normal
distribution replaces Student's. Its sides are widened by both factors, as Hesterberg (2015, "What teachers should know
about the bootstrap", section 4.3) does for its levels; sides can grow beyond the data, levels cannot.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

RESAMPLES, LEVEL, SEED = 2000, 0.95, 0


@dataclass(frozen=True)
class Estimate:
    """A ratio of two sums over windows, such as a mean (sum over count), and its 95 % interval.

    nan if there is nothing to average; the interval is nan for a single episode. What is no ratio, such as a distance
    of distributions, has no sums.
    """

    mean: float
    low: float
    high: float
    sums: list[float]
    """Numerator of each episode."""
    counts: list[float]
    """Denominator of each episode: the number of windows, if this is a mean."""

    def text(self, digits: int) -> str:
        """The mean, and half of the interval's width where it has one."""
        width = "" if np.isnan(self.low) else f" ±{(self.high - self.low) / 2:.{digits}f}"
        return f"{self.mean:.{digits}f}{width}"

    def __str__(self) -> str:
        return self.text(2)

    def minus(self, other: "Estimate") -> "Estimate | None":
        """The difference, paired over episodes: both are judged on the same windows. None if they are not."""
        if not self.sums or self.counts != other.counts:
            return None
        return ratio_of(np.subtract(self.sums, other.sums), np.array(self.counts))


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
    mean = float(sums.sum() / counts.sum()) if counts.sum() else np.nan
    known = int((counts != 0).sum())
    if known > 1:
        drawn = np.random.default_rng(SEED).integers(0, len(sums), (RESAMPLES, len(sums)))
        low, high = (mean + widening(known) * (bound - mean) for bound in _quantiles(sums[drawn], counts[drawn]))
    return Estimate(mean, low, high, sums.tolist(), counts.tolist())


def widening(episodes: int) -> float:
    """By how much the sides of a percentile interval of this many episodes are too short; 1 for very many."""
    return float(half_width(episodes) / ndtri((1 + LEVEL) / 2) * np.sqrt(episodes / (episodes - 1)))


def half_width(episodes: int) -> float:
    """Half the width of Student's interval of a mean of this many independent values, in standard errors."""
    return float(stdtrit(episodes - 1, (1 + LEVEL) / 2))


def _quantiles(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Bounds of the middle `LEVEL` of the ratios of resamples [R, E]; those without a window are left out."""
    sums, counts = sums.sum(1), counts.sum(1)
    ratios = sums[counts != 0] / counts[counts != 0]
    return np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
