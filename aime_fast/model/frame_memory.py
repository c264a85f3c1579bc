"""A memory of the frames of recent steps, of which some are drawn again with each batch.

The frames of a window resemble each other, so a batch of windows teaches encoder and decoder less than as many frames
from everywhere. So a part of what the decoder draws are single frames of earlier windows (docs/model.md).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aime_fast.config import TrainConfig
from aime_fast.config.schema import DEFAULT_IMAGE_SIZE
from aime_fast.model.draws import Draw, Draws
from aime_kernels import normalise_frames

STEPS = 32
"""Steps whose frames are kept: 50 MB for 8 windows of 16 frames of 64 x 64."""


def single_frames(config: TrainConfig) -> int:
    """n, the single frames for each window of T frames: below T, and 0 for none."""
    time = config.loader.sequence_length
    return min(round(config.losses.single_frames * time), time - 1)


def kept_bytes(config: TrainConfig, windows: int) -> int:
    """Bytes that a process keeps for its `windows` of a step."""
    size = config.model.image_size or DEFAULT_IMAGE_SIZE
    return STEPS * windows * config.loader.sequence_length * size**2 * 3 if single_frames(config) else 0


@dataclass(frozen=True)
class SingleFrames:
    """n frames for each of b windows, from the last steps' windows, this one's among them.

    Each is looked at alone: its context is zero (that of a window's first frame is not), and its prior a first frame's.
    """

    frames: Tensor
    """[b, n, 3, H, W] in [-1, 1]."""
    noise: Tensor
    """Standard normal numbers of their samples of z, [b, n, D]."""
    drawn: Tensor
    """int64 [b, T - n], the frames of the window itself that the decoder draws: it draws T for a window, as ever."""

    @property
    def share(self) -> float:
        """Their share of what the decoder draws."""
        return self.frames.shape[1] / (self.frames.shape[1] + self.drawn.shape[1])

    def own(self, x: Tensor) -> Tensor:
        """Of x [b, T, ...] what belongs to the frames `drawn`, [b, T - n, ...]."""
        rows = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
        return x.flatten(0, 1).index_select(0, (rows + self.drawn).flatten()).unflatten(0, self.drawn.shape)

    def with_own(self, x: Tensor, of_singles: Tensor) -> Tensor:
        """`own(x)`, and after it what belongs to the single frames: [b, T, ...]."""
        return torch.cat([self.own(x), of_singles], 1)


class FrameMemory:
    """The observations of the last steps, for each row of the batch: any number of ranks draws the same frames."""

    def __init__(self, config: TrainConfig, device: torch.device, world_size: int) -> None:
        loader, size = config.loader, config.model.image_size
        self.frames = single_frames(config)
        """n."""
        shape = (STEPS, loader.batch_size // world_size, loader.sequence_length, size, size, 3)
        self.kept = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.written = torch.zeros((), dtype=torch.int64, device=device)
        """Steps that were ever kept, 0-d."""
        self.draws: tuple[Draw, ...] = (
            Draw("single_place", "fraction", (self.frames,)),
            Draw("single_latent", "normal", (config.model.latent_dim,)),
            Draw("single_drawn", "fraction"),
        )

    def keep(self, observations: Tensor) -> None:
        """Put the observations of this step, uint8 [b, T, S, S, 3], in place of the oldest."""
        place = (self.written % STEPS)[None]
        self.kept[:, : len(observations)].index_copy_(0, place, observations[None])
        self.written += 1

    def take(self, draws: Draws, first: int) -> SingleFrames:
        """Frames for the windows that `draws` is for, of which the first is row `first`, from the steps kept so far."""
        place = draws["single_place"][:, 0]
        steps, rows, time = self.kept.shape[:3]
        found = (place * (self.written.clamp(max=steps) * time)).long()
        row = first + torch.arange(len(place), device=place.device)[:, None]
        at = (found // time * rows + row) * time + found % time
        frames = self.kept.flatten(0, 2).index_select(0, at.flatten()).unflatten(0, at.shape)
        drawn = draws["single_drawn"].argsort(1)[:, self.frames :]
        return SingleFrames(normalise_frames(frames), draws["single_latent"][:, : self.frames], drawn)

    def refill(self, step: int, observations: Callable[[int], Tensor]) -> None:
        """Be as after `step` steps, by the observations of the last ones."""
        first = max(0, step - STEPS)
        self.written.fill_(first)
        for number in range(first, step):
            self.keep(observations(number))
