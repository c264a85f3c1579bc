"""Linear models fitted in closed form: principal components of frames, ridge regression, and R2."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties that are tried, for inputs of unit variance."""
HELD_BACK = 0.2
"""Share of the rows, the last ones, on which a penalty is chosen."""


@dataclass(frozen=True)
class PCA:
    """Principal components."""

    mean: Tensor
    """[P]."""
    components: Tensor
    """Orthonormal rows [D, P], by falling variance."""

    def encode(self, rows: Tensor) -> Tensor:
        """[..., P] -> codes [..., D]."""
        return (rows - self.mean) @ self.components.T

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [..., D] -> [..., P]."""
        return codes @ self.components + self.mean


def fit_pca(rows: Tensor, size: int) -> PCA:
    """The first `size` principal components of rows [N, P], fewer if N or P is smaller; through the N x N products."""
    mean = rows.double().mean(0)
    centred = rows.double() - mean  # in float32, rounding would become components of data of low rank
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    kept = (values > values[-1] * 1e-9).sum().clamp(1, min(size, rows.shape[1]))
    components = vectors[:, -int(kept) :].flip(1).T @ centred
    return PCA(mean.to(rows), torch.nn.functional.normalize(components, dim=1).to(rows))


@dataclass(frozen=True)
class Linear:
    """y = (x - centre) / scale @ weights + offset."""

    centre: Tensor
    scale: Tensor
    weights: Tensor
    """[P, Q], for inputs of unit variance."""
    offset: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Inputs [..., P] -> predictions [..., Q], in the inputs' dtype."""
        return ((inputs - self.centre) / self.scale @ self.weights + self.offset).to(inputs.dtype)


def fit_ridge(inputs: Tensor, targets: Tensor, strength: float) -> Linear:
    """Ridge regression of targets [N, Q] on inputs [N, P], both centred, inputs scaled to unit variance; in float64."""
    x, y = inputs.double(), targets.double()
    centre, offset, scale = x.mean(0), y.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-9 * scale.max().clamp_min(1e-30), scale, 1.0)
    x = (x - centre) / scale
    penalty = strength * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(x.T @ x / len(x) + penalty, x.T @ (y - offset) / len(x))
    return Linear(centre, scale, weights, offset)


def choose_ridge(inputs: Tensor, targets: Tensor) -> Linear:
    """`fit_ridge` with a penalty for each target: that whose fit to the first rows errs least on the last `HELD_BACK`.

    One penalty for all would be that of the targets which no linear map finds.
    """
    first = max(1, round(len(inputs) * (1 - HELD_BACK)))
    rows = slice(first, None) if first < len(inputs) else slice(None)
    tried = [fit_ridge(inputs[:first], targets[:first], strength)(inputs[rows].double()) for strength in STRENGTHS]
    errors = torch.stack([(found - targets[rows]).square().mean(0) for found in tried])  # [strengths, Q]
    fits = [fit_ridge(inputs, targets, strength) for strength in STRENGTHS]
    weights = torch.stack([fit.weights for fit in fits])  # [strengths, P, Q]
    columns = torch.arange(targets.shape[1], device=weights.device)
    return replace(fits[0], weights=weights[errors.argmin(0), :, columns].T)


def r2(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 - squared error / variance of each column of [N, Q]: float64 [Q]; nan for a constant column."""
    error = (targets.double() - predictions.double()).square().sum(0)
    spread = (targets.double() - targets.double().mean(0)).square().sum(0)
    return torch.where(spread > 0, 1 - error / spread, torch.nan)
