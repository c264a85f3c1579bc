"""Predictions several frames ahead, each from the one before.

Training predicts each frame from the z of the frame before. Imagination goes on from its own predictions, so what it is
worth shows here.
"""

import torch
from torch import Generator, Tensor

from aime_fast.model.draws import make_draws
from aime_fast.model.priors.prior import Noise
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.perceived import Perceived


@torch.no_grad()
def latents_ahead(
    model: WorldModel, latent: Tensor, actions: Tensor, far: int, generator: Generator, sampled: bool = False
) -> Tensor:
    """z [B, far, D] of the `far` frames that follow those whose z [B, T, D] is given: the prior's means, or samples.

    Of the actions [B, T + far - 1 or more, A] the last one leads to the last frame. `generator` gives the sticks and
    the samples.
    """
    time, noise = latent.shape[1], Noise(generator, len(latent))
    hidden, state = model.dynamics(latent, actions[:, :time], model.dynamics.start_state(len(latent)))
    hidden, z = hidden[:, -1:], latent[:, -1:]
    found: list[Tensor] = []
    for t in range(time, time + far):
        action = actions[:, t - 1 : t]
        if found:
            hidden, state = model.dynamics(z, action, state)
        draws = make_draws(model.prior.draws, len(z), 1, generator).to(z.device)
        prior = model.prior(hidden, action, z, draws)
        z = prior.sample(noise) if sampled else prior.mean
        found.append(z)
    return torch.cat(found, 1)


def error_ahead(model: WorldModel, windows: Perceived, seed: int) -> float:
    """How wrong the means in the second half of windows [B, T] are, predicted from the first half, in dB; T >= 2.

    An error counts in units of the posterior's deviation, by which a coordinate may be off without its being seen in
    the frame. Decibels are averaged over frames, as those of PSNR are.
    """
    far = windows.mean.shape[1] // 2
    seen, coming = windows.mean[:, :-far], windows.mean[:, -far:]
    means = latents_ahead(model, seen, windows.actions, far, Generator().manual_seed(seed))
    relative = (means - coming).square() / windows.log_var.exp().mean((0, 1))
    return float(10 * relative.mean(-1).log10().mean())
