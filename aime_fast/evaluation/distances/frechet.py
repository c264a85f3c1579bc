"""The Frechet distance of two sets of feature vectors, each taken as a Gaussian (Dowson & Landau 1982)."""

import numpy as np
import torch
from torch import Tensor

from aime_fast.evaluation.intervals import Estimate, half_width


def frechet_distance(ours: Tensor, theirs: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of vectors [N, D] and [M, D]; N and M at least 2; in float64.

    With S = R'R, the eigenvalues of S1 S2 are the squared singular values of R1 R2'. So nothing is squared that has to
    be rooted again, and the distance of equal sets is 0 up to rounding.
    """
    (mean, root), (other_mean, other_root) = (_moments(x.double()) for x in (ours, theirs))
    shared = torch.linalg.svdvals(root @ other_root.T).sum()
    spread = root.square().sum() + other_root.square().sum() - 2 * shared
    return float((mean - other_mean).square().sum() + spread.clamp_min(0))


def _moments(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D], and R with R'R the covariance (of divisor N - 1)."""
    mean = vectors.mean(0)
    return mean, torch.linalg.qr((vectors - mean) / (len(vectors) - 1) ** 0.5, mode="r").R


def frechet_over(ours: Tensor, theirs: Tensor, episodes: np.ndarray) -> Estimate:
    """The distance of the features [W, n, D] of windows of `episodes` int64 [W].

    A bootstrap would repeat vectors, and so raise the distance. The interval is that of the jackknife: episodes are
    left out in turn (Efron & Tibshirani 1993, chapter 11). It knows nothing of the bias of few vectors, which is
    upwards. nan for a single episode.
    """
    whole = frechet_distance(ours.flatten(0, 1), theirs.flatten(0, 1))
    present = np.unique(episodes)
    low = high = np.nan
    if len(present) > 1:
        kept = [torch.from_numpy(episodes != episode) for episode in present]
        without = np.array([frechet_distance(ours[rows].flatten(0, 1), theirs[rows].flatten(0, 1)) for rows in kept])
        error = np.sqrt((len(present) - 1) * np.square(without - without.mean()).mean())
        low, high = (whole + side * half_width(len(present)) * error for side in (-1, 1))
    return Estimate(whole, float(low), float(high), [], [])


def between_halves(features: Tensor) -> float:
    """The distance of every second window's features [W, n, D] from those of the others: what no model can be below.

    It is that of half as many vectors, so it is too high rather than too low. nan for fewer than 4 vectors.
    """
    even, odd = features[::2].flatten(0, 1), features[1::2].flatten(0, 1)
    return frechet_distance(even, odd) if min(len(even), len(odd)) > 1 else float("nan")
