"""Latents of earlier windows, as a training pass reads them beside its batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aime_fast.model.draws import Draws


@dataclass(frozen=True)
class Recalled:
    """R windows that were seen some steps ago. Their latents are constants: only dynamics and prior learn from them."""

    latents: Tensor
    """Samples of their posteriors, [R, T, D]."""
    noisy: Tensor
    """The samples with the noise of training, which dynamics and prior read, [R, T, D]."""
    actions: Tensor
    """[R, T, A]."""
    draws: Draws
    """The prior's random numbers for these windows."""
    weight: Tensor
    """0-d: what a frame's nats count, relative to `kl_z`, times R / B. 0 while nothing has been seen."""

    def after(self, noisy: Tensor, actions: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Draws]:
        """A batch's noisy z [B, T, D], actions [B, T, A] and numbers of the prior, followed by these: B + R rows.

        One pass of dynamics and prior over all rows takes as many launches as over the batch.
        """
        numbers = {name: torch.cat([draws[name], x]) for name, x in self.draws.values.items()}
        return torch.cat([noisy, self.noisy]), torch.cat([actions, self.actions]), Draws(numbers)
