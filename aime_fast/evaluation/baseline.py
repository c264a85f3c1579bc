"""A predictor without a network: ridge regression from PCA codes and actions to the next codes, rolled forward.

It predicts the change of the codes, so that a large penalty means copying, which is good for few frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from aime_fast.data.store import Episodes
from aime_fast.evaluation.linear import PCA, STRENGTHS, Linear, fit_pca, fit_ridge
from aime_fast.evaluation.windows import Windows, make_windows

CODES = 36
"""Principal components of a frame."""
PCA_FRAMES, FIT_WINDOWS, FIT_STRIDE = 1000, 600, 5
"""Largest numbers of training frames and windows for the fit, and the windows' stride."""


@dataclass(frozen=True)
class RolledRidge:
    """Predicts the change of the codes from those of the last `context` frames and the actions taken after each."""

    pca: PCA
    step: Linear
    context: int
    low: Tensor
    """Smallest training codes [D]; predictions stay between these and `high`, so that they cannot run away."""
    high: Tensor

    def __call__(self, frames: Tensor, actions: Tensor) -> Tensor:
        """Context frames [B, c, 3, H, W] and actions [B, c-1+h, A] -> the h frames that follow, [B, h, 3, H, W]."""
        codes = self.roll(self.pca.encode(frames.flatten(2).cpu()), actions.cpu())
        return self.pca.decode(codes).unflatten(-1, frames.shape[2:]).to(frames.device)

    def roll(self, codes: Tensor, actions: Tensor) -> Tensor:
        """Codes of the context [B, c, D] and actions [B, c-1+h, A] -> the codes of the h frames that follow."""
        rolled = list(codes.unbind(1))
        for first in range(actions.shape[1] - self.context + 1):
            inputs = _inputs(torch.stack(rolled[first:], 1), actions[:, first : first + self.context])
            rolled.append((rolled[-1] + self.step(inputs)).clamp(self.low, self.high))
        return torch.stack(rolled[self.context :], 1)


def fit_rolled_ridge(store: Episodes, context: int, horizon: int, size: int = CODES) -> RolledRidge:
    """The baseline of the training episodes in `store`; the penalty is the best one for `horizon` rolled frames."""
    frames = make_windows(store, 1, 1, PCA_FRAMES)
    pixels = torch.cat([batch.frames().flatten(0, 1).flatten(1) for _, batch in frames.parts(64)])
    pca = fit_pca(pixels, size)
    windows = make_windows(store, context + horizon, FIT_STRIDE, FIT_WINDOWS)
    codes, actions = _encoded(pca, windows)
    low, high = codes.flatten(0, 1).amin(0), codes.flatten(0, 1).amax(0)
    held_back = max(1, len(codes) // 5)
    last = slice(len(codes) - held_back, None)
    first = slice(0, len(codes) - held_back) if len(codes) > 1 else last

    def fitted(rows: slice, strength: float) -> RolledRidge:
        inputs = torch.cat(
            [_inputs(codes[rows, t : t + context], actions[rows, t : t + context]) for t in range(horizon)]
        )
        targets = codes[rows].diff(dim=1)[:, context - 1 :].transpose(0, 1).flatten(0, 1)
        return RolledRidge(pca, fit_ridge(inputs, targets, strength), context, low, high)

    def error(strength: float) -> float:
        rolled = fitted(first, strength).roll(codes[last, :context], actions[last, :-1])
        return float((rolled - codes[last, context:]).square().mean())

    return fitted(slice(None), min(STRENGTHS, key=error))


def _inputs(codes: Tensor, actions: Tensor) -> Tensor:
    """Codes [B, c, D] and actions [B, c, A] of as many frames -> [B, c (D + A)]."""
    return torch.cat([codes.flatten(1), actions.flatten(1)], dim=1)


def _encoded(pca: PCA, windows: Windows) -> tuple[Tensor, Tensor]:
    """Codes [W, T, D] and actions [W, T, A] of all windows."""
    parts = [(pca.encode(batch.frames().flatten(2)), batch.actions) for _, batch in windows.parts(32)]
    codes, actions = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return codes, actions
