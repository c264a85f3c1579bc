"""Predictions several frames ahead: the prior's means, each from the one before.

Training predicts each frame from the z of the frame before. Imagination goes on from its own predictions, so what it is
worth shows here.
"""

import torch
from torch import Tensor

from aime_fast.model.draws import make_draws
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.perceived import Perceived


@torch.no_grad()
def means_ahead(model: WorldModel, latent: Tensor, actions: Tensor, far: int, seed: int) -> Tensor:
    """Means of z [B, far, D] of the `far` frames that follow those whose z [B, T, D] is given.

    Of the actions [B, T + far - 1 or more, A] the last one leads to the last frame. `seed` is that of the sticks.
    """
    time, generator = latent.shape[1], torch.Generator().manual_seed(seed)
    hidden, state = model.dynamics(latent, actions[:, :time], model.dynamics.start_state(len(latent)))
    hidden, z = hidden[:, -1:], latent[:, -1:]
    means: list[Tensor] = []
    for t in range(time, time + far):
        action = actions[:, t - 1 : t]
        if means:
            hidden, state = model.dynamics(z, action, state)
        draws = make_draws(model.prior.draws, len(z), 1, generator).to(z.device)
        z = model.prior(hidden, action, z, draws).mean
        means.append(z)
    return torch.cat(means, 1)


def error_ahead(model: WorldModel, windows: Perceived, seed: int) -> float:
    """How wrong the means in the second half of windows [B, T] are, predicted from the first half, in dB; T >= 2.

    An error counts in units of the posterior's deviation, by which a coordinate may be off without its being seen in
    the frame. Decibels are averaged over frames, as those of PSNR are.
    """
    far = windows.mean.shape[1] // 2
    seen, coming = windows.mean[:, :-far], windows.mean[:, -far:]
    means = means_ahead(model, seen, windows.actions, far, seed)
    relative = (means - coming).square() / windows.log_var.exp().mean((0, 1))
    return float(10 * relative.mean(-1).log10().mean())
