"""Overshooting: the prior rolled over several frames from many starts at once, without looking at them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aime_fast.model.parts.dynamics import Dynamics, LSTMState
from aime_fast.model.parts.likelihood import Likelihood
from aime_fast.model.priors.prior import Prior


@dataclass(frozen=True)
class Starts:
    """Where the prior is rolled: `length` frames from after the first n frames, for each n in `seen`."""

    seen: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, frames: int, wanted: int) -> "Starts":
        """Starts for a window of `frames` frames: rolled over at most `wanted` frames and half of the window."""
        length = min(wanted, frames // 2)
        if length < 1:
            return cls((), 0)
        return cls(tuple(range(max(length // 2, 1), frames - length + 1, max(length // 2, 1))), length)

    def gather(self, x: Tensor, offset: int = 0) -> Tensor:
        """The rolled frames of x [B, T, ...], one start after the other: [N*B, length, ...], moved by `offset`."""
        return torch.cat([x[:, n + offset : n + offset + self.length] for n in self.seen])


@dataclass
class Rolled:
    """What the prior predicts of the frames after its starts, R rows."""

    latents: Tensor  # the mean of the prior, [R, length, D], each from the one before
    starts: Starts
    likelihood: Likelihood  # of the frames that are decoded, [R, length // step, ...]
    pixels: Tensor  # these frames as sub-images, [R, length // step, q, 3, h, w]


def roll(
    dynamics: Dynamics, prior: Prior, states: list[LSTMState], latents: Tensor, actions: Tensor, starts: Starts
) -> Tensor:
    """The prior's mean of each rolled frame, [R, length, D], with gradient.

    `states` are those of the LSTM after each start's seen frames, `latents` z [B, T, D] and `actions` a [B, T, A].
    A loop over the rolled frames, for all rows at once; none over the window.
    """
    hidden, cell = (torch.cat(parts, 1) for parts in zip(*states, strict=True))
    latent = torch.cat([latents[:, n - 1 : n] for n in starts.seen])
    taken = starts.gather(actions, -1)
    made = []
    for k in range(starts.length):
        if k:
            _, (hidden, cell) = dynamics(latent, taken[:, k : k + 1], (hidden, cell))
        latent = prior.mean_of(hidden.transpose(0, 1), taken[:, k : k + 1], latent)
        made.append(latent)
    return torch.cat(made, 1)
