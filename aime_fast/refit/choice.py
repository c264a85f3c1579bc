"""The choice of what a frame keeps of an older one, fitted to imagined frames.

Training draws from the z of frames that were seen, so the choice learns to trust what is drawn. An imagined z is worse
the further ahead it lies, and so is the z of what no training episode showed. The last frame that was seen still shows
both, where nothing moves.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from aime_fast.config import LossConfig
from aime_fast.data.store import Episodes
from aime_fast.evaluation.windows import Windows
from aime_fast.model.parts.subimages import subimages
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.ahead import latents_ahead
from aime_fast.refit.perceived import Perceived, Recording, perceive, spread

STEPS, ROWS = 200, 16
"""Most steps, and windows of a step: each gives an imagined frame and one that was seen."""
JUDGED = 256
"""Held-out windows that the result is judged by."""
RATE, WARMUP, LAST = 2e-3, 20, 0.05
"""Learning rate, steps until it is reached, and its last value relative to it; it falls in the second half."""


def fit_choice(
    model: WorldModel,
    store: Episodes,
    recording: Recording,
    held_out: Episodes,
    length: int,
    weights: LossConfig,
    steps: int,
    seed: int,
) -> bool:
    """Fit `model.decoder.keeping`, and nothing else, by the likelihood of frames and the squared error of their means.

    Half of the frames are imagined from a window's first ones and keep some of the last frame before; the other half
    are seen and keep some of the frame before, as when filtering. If one half of the windows of held-out episodes is
    worse after it, the model stays as it was. Returns whether it has changed. Training episodes could not tell: what
    lies still in them z draws well.

    Args:
        model: in evaluation mode; it is changed.
        store: the episodes that `recording` was perceived from.
        recording: its frames.
        held_out: episodes that the model was not trained on.
        length: frames of a window, 2 or more.
        weights: of likelihood and error.
        steps: to take.
        seed: of windows and draws.

    Raises:
        UserError: no held-out episode has a window.
    """
    others = perceive(model, held_out, length, least=1)
    windows = spread(others.firsts(length, range(len(others.lengths))), JUDGED)
    judged = _Losses(model, held_out, others, length, weights)
    choice = [parameter.requires_grad_() for parameter in model.decoder.keeping.parameters()]
    first = [parameter.detach().clone() for parameter in choice]
    optimiser = torch.optim.Adam(choice, lr=RATE, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(step, steps))
    firsts, generator = recording.firsts(length, range(len(recording.lengths))), Generator().manual_seed(seed)
    losses = _Losses(model, store, recording, length, weights)
    before = judged.of_halves(windows, seed)
    for _ in range(steps):
        chosen = firsts[torch.randint(len(firsts), (ROWS,), generator=generator)]
        optimiser.zero_grad()
        losses(chosen, generator).mean().backward()
        optimiser.step()
        rate.step()
    better = bool((judged.of_halves(windows, seed) <= before).all())
    if not better:
        with torch.no_grad():
            torch._foreach_copy_(choice, first)
    return better


@dataclass(frozen=True)
class _Losses:
    """Losses of imagined and of seen frames of some windows."""

    model: WorldModel
    store: Episodes
    recording: Recording
    length: int
    weights: LossConfig

    def __call__(self, firsts: Tensor, generator: Generator) -> Tensor:
        """Of an imagined and of a seen frame of each of the windows at `firsts`, int64 [B]: means over B, [2]."""
        device, windows = self.model.mean_frame.device, Windows(self.store, self.length, self.recording.places(firsts))
        frames = windows.batch(np.arange(len(firsts))).frames().to(device)
        seen = self.recording.frames.windows(firsts, self.length).to(device)
        halves = zip(*(x.chunk(2) for x in _examples(self.model, seen, frames, generator)), strict=True)
        return torch.stack([self._of(*half) for half in halves])

    def _of(self, latent: Tensor, kept: Tensor, true: Tensor) -> Tensor:
        pixels, of_nats = subimages(true, self.model.decoder.patch), torch.ones_like(latent[..., 0])
        likelihood = self.model.likelihood(latent, kept)
        loss, _, _ = likelihood.loss(pixels, of_nats * self.weights.lambda_recon, self.weights.lambda_mean)
        return loss / pixels.numel()

    @torch.no_grad()
    def of_halves(self, firsts: Tensor, seed: int) -> Tensor:
        """Both means over the windows at `firsts`, [2]; equal seeds give equal draws."""
        generator = Generator().manual_seed(seed)
        return torch.stack([self(part, generator) for part in firsts.split(ROWS)]).mean(0)


def _share(step: int, steps: int) -> float:
    return min((step + 1) / WARMUP, 1.0, max(2 * (1 - step / steps), LAST))


@torch.no_grad()
def _examples(
    model: WorldModel, seen: Perceived, frames: Tensor, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """z [2B, 1, D] of an imagined frame of each window [B, T] and then of a seen one, what each may keep, and itself.

    Frames, kept ones and true ones, are [2B, 1, 3, H, W].
    """
    batch, time = frames.shape[:2]
    rows = torch.arange(batch)
    last = int(torch.randint(time // 2, (), generator=generator))
    imagined = latents_ahead(model, seen.mean[:, : last + 1], seen.actions, time - 1 - last, generator, sampled=True)
    ahead = torch.randint(imagined.shape[1], (batch,), generator=generator)
    now = 1 + torch.randint(time - 1, (batch,), generator=generator)
    latent = torch.cat([imagined[rows, ahead], seen.mean[rows, now]])
    kept = torch.cat([frames[:, last], frames[rows, now - 1]])
    true = torch.cat([frames[rows, last + 1 + ahead], frames[rows, now]])
    return latent[:, None], kept[:, None], true[:, None]
