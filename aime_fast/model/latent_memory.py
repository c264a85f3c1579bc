"""A memory of the latents of recent windows, from which dynamics and prior go on learning.

Perception and pixels are nearly all of a step's work, and a window teaches the dynamics little at one look. So each
window of a batch brings some earlier ones along as latents (docs/model.md).
"""

import torch
from torch import Tensor, distributed

from aime_fast.config import TrainConfig
from aime_fast.model.draws import Draw, Draws
from aime_fast.model.priors.prior import Prior
from aime_fast.model.recalled import Recalled

WINDOWS = 512
"""Windows that are kept, the newest. Older ones are of another encoder: with 8 a step the oldest is 64 steps old."""


class LatentMemory:
    """A ring of windows: posterior means, deviations and actions, in float32. It is equal on all ranks."""

    def __init__(self, config: TrainConfig, prior: Prior, device: torch.device) -> None:
        model, loader = config.model, config.loader
        self.each, self.noise = config.losses.recalled, model.latent_noise
        self.sizes = (model.latent_dim, model.latent_dim, model.action_dim)
        windows = max(WINDOWS, loader.batch_size)
        self.rows = torch.zeros(windows, loader.sequence_length, sum(self.sizes), device=device)
        self.written = torch.zeros((), dtype=torch.int64, device=device)
        """Windows that were ever kept, 0-d."""
        self._places = torch.arange(loader.batch_size, device=device)
        self._of_prior = [draw.name for draw in prior.draws]
        normal = (self.each, model.latent_dim)
        self.draws: tuple[Draw, ...] = (
            Draw("recalled", "fraction", (self.each,)),
            Draw("recalled_latent", "normal", normal),
            Draw("recalled_noise", "normal", normal),
        )

    def take(self, draws: Draws) -> Recalled:
        """For each window that `draws` is for, `each` windows of the memory, drawn evenly; new samples of their z."""
        filled = self.written.clamp(1, len(self.rows))
        found = self.rows[(draws["recalled"][:, 0].flatten() * filled).long()]
        mean, deviation, actions = found.split(self.sizes, -1)
        latents = mean + deviation * _by_window(draws["recalled_latent"])
        noisy = latents + self.noise * _by_window(draws["recalled_noise"])
        of_prior = Draws({name: draws[name].repeat_interleave(self.each, 0) for name in self._of_prior})
        return Recalled(latents, noisy, actions, of_prior, self.each * (self.written > 0))

    @torch.no_grad()
    def keep(self, windows: Tensor, finite: Tensor) -> None:
        """Put this rank's windows, [b, T, 2D + A], in place of the oldest. Collective: it keeps those of all ranks.

        Where `finite` (0-d bool, equal on all ranks) is false nothing changes.
        """
        if distributed.is_available() and distributed.is_initialized():
            parts = [torch.empty_like(windows) for _ in range(distributed.get_world_size())]
            distributed.all_gather(parts, windows.contiguous())
            windows = torch.cat(parts)
        places = (self.written + self._places[: len(windows)]) % len(self.rows)
        self.rows.index_copy_(0, places, torch.where(finite, windows, self.rows[places]))
        self.written += finite * len(windows)

    def state_dict(self) -> dict[str, Tensor]:
        """The memory's tensors by name."""
        return {"rows": self.rows, "written": self.written}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave; without it, or of other sizes, the memory is empty."""
        kept = state.get("rows")
        if kept is None or kept.shape != self.rows.shape:
            self.written.zero_()
            return
        self.rows.copy_(kept)
        self.written.copy_(state["written"])


def _by_window(numbers: Tensor) -> Tensor:
    """[b, T, n, D] -> [b * n, T, D]."""
    return numbers.transpose(1, 2).flatten(0, 1)
