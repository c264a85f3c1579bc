"""Every random number of one step, drawn from one key for the global batch, so that a rank takes its rows."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from aime_fast.config import ModelConfig

UNIFORM_MARGIN = 1e-6


@dataclass(frozen=True)
class Noise:
    """The draws of one step; every tensor but `candidates` starts with the batch axis."""

    latent: Tensor
    """Standard normal [B, T, n, D]: the n Monte Carlo samples of kl_z, of which the first is used downstream."""
    sticks: Tensor
    """Uniform [B, T, K-1] in (0, 1): the sticks' inverse-CDF draws."""
    substitute: Tensor
    """Bool [B, T]: positions that do with what an imagined frame has: slots predicted from z_t, no c, no attention."""
    carried: Tensor
    """Standard normal [B, T, D]: what is added, scaled, to the z that dynamics and prior carry into the next frame."""
    candidates: Tensor
    """int64 [num_codes]: flat (sequence, frame, cell) indices of the global batch offered to dead codes."""
    first_row: int = 0
    """The global row of this slice's first sequence."""

    def rows(self, start: int, stop: int) -> "Noise":
        """The draws of sequences `start` to `stop` of this slice."""
        sliced = {f.name: getattr(self, f.name)[start:stop] for f in fields(self)[:4]}
        return replace(self, **sliced, first_row=self.first_row + start)

    def to(self, device: torch.device) -> "Noise":
        """The same draws on `device`."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)[:5]})


def draw_noise(config: ModelConfig, key: int, batch: int, frames: int) -> Noise:
    """Draw on the CPU, from `key` alone, what a step on `batch` x `frames` needs; equal on every rank and device."""
    generator = torch.Generator().manual_seed(key)
    cells = config.grid**2
    uniform = torch.rand(batch, frames, config.max_components - 1, generator=generator)
    return Noise(
        latent=torch.randn(batch, frames, config.kl_samples, config.latent_dim, generator=generator),
        sticks=uniform.clamp(UNIFORM_MARGIN, 1 - UNIFORM_MARGIN),
        substitute=torch.rand(batch, frames, generator=generator) < config.imagination_dropout,
        candidates=torch.randint(batch * frames * cells, (config.num_codes,), generator=generator),
        carried=torch.randn(batch, frames, config.latent_dim, generator=generator),
    )


def no_noise(config: ModelConfig, batch: int, frames: int) -> Noise:
    """The deterministic pass: posterior means, median sticks, nothing substituted."""
    return Noise(
        latent=torch.zeros(batch, frames, config.kl_samples, config.latent_dim),
        sticks=torch.full((batch, frames, config.max_components - 1), 0.5),
        substitute=torch.zeros(batch, frames, dtype=torch.bool),
        carried=torch.zeros(batch, frames, config.latent_dim),
        candidates=torch.zeros(config.num_codes, dtype=torch.int64),
    )
