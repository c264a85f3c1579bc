"""Features that say where a simulator's bodies are and how they move, for a Frechet distance of predictions.

A frozen probe reads positions and velocities from two frames. It is fitted to recorded frames alone, so it is the same
for every model of a data set. Its R2 is what the table of the probe calls "PCA codes of two frames".
"""

import torch
from torch import Tensor

from aime_fast.data.shards.states import KeptStates
from aime_fast.evaluation.linear import PCA, choose_ridge
from aime_fast.evaluation.open_loop import Features
from aime_fast.evaluation.probe import SETTLED, simulator_states
from aime_fast.evaluation.windows import Windows


def fit_state_features(train: Windows, ids: list[int], kept: KeptStates, pca: PCA, context: int) -> Features:
    """The probe as a function of windows [B, T, 3, H, W] in [-1, 1], fitted to the frames of `train`.

    It gives the states of all frames after the context, [B, T - context, D]: ridge regression of positions and
    velocities, in standard deviations of training, on the codes of a frame and the one before. `ids` number the
    episodes of `train` among all recorded.
    """
    states = torch.cat([values for _, values in simulator_states(train, ids, kept).values()], 1)
    deviation = states.std(0, correction=0)
    moving = deviation > 0
    pairs = [_pairs(pca, batch.frames())[:, SETTLED - 1 :].flatten(0, 1) for _, batch in train.parts(32)]
    read = choose_ridge(torch.cat(pairs).double(), states[:, moving] / deviation[moving])

    def features(windows: Tensor) -> Tensor:
        return read(_pairs(pca, windows.clamp(-1, 1).cpu())[:, context - 1 :].double())

    return features


def _pairs(pca: PCA, frames: Tensor) -> Tensor:
    """Codes of each frame but the first, and of the one before it: [B, T - 1, 2 D]."""
    codes = pca.encode(frames.flatten(2))
    return torch.cat([codes[:, :-1], codes[:, 1:]], -1)
