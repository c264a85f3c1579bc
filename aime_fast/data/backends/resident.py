"""The `resident` back-end: every frame on the device as uint8, one gather a batch."""

from dataclasses import fields

import numpy as np
import psutil
import torch
from torch import Tensor

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.exact import ExactBackend
from aime_fast.data.batch import Batch
from aime_fast.data.episode import FRAME_SHAPE
from aime_fast.data.shards.manifest import STRIP_LENGTH
from aime_fast.data.store import Episodes
from aime_fast.errors import UserError
from aime_kernels import gather_windows


class ResidentBackend(ExactBackend):
    """Copies windows out of tensors that live on the device for the whole run."""

    def __init__(
        self, episodes: Episodes, config: LoaderConfig, seed: int, description: str, device: torch.device
    ) -> None:
        """Load and check every frame; `UserError` when they do not fit, or no episode is as long as a window."""
        super().__init__(episodes, config, seed, description)
        free = free_bytes(device)
        if episodes.frame_bytes > free:
            raise UserError(
                f"{episodes.description}: {episodes.frame_bytes / 1e9:.1f} GB of frames, but {free / 1e9:.1f} GB are "
                f"free on {device}; use --backend memory or dali"
            )
        self._device = device
        self._frames = torch.empty(sum(episodes.lengths), *FRAME_SHAPE, dtype=torch.uint8, device=device)
        for episode, length in enumerate(episodes.lengths):
            for number in range(-(-length // STRIP_LENGTH)):
                place = int(episodes.first[episode]) + number * STRIP_LENGTH
                strip = np.array(episodes.strip_frames(episode, number))
                self._frames[place : place + len(strip)].copy_(torch.from_numpy(strip))
        columns = (episodes.actions, episodes.rewards, episodes.dones)
        self._columns = [torch.from_numpy(column).to(device) for column in columns]
        self._mean_frame = episodes.mean_frame()
        # The host's copy of the frames, where there is one, can go.
        self.episodes = Episodes(**{item.name: getattr(episodes, item.name) for item in fields(Episodes)})

    def mean_frame(self) -> Tensor:
        """Mean of many of the split's frames, evenly spread: float32 [3, 64, 64] in [-1, 1]."""
        return self._mean_frame

    def read(self, windows: np.ndarray) -> Batch:
        """A batch of these windows, on the device."""
        places = self.episodes.places(windows, self.sequence_length)
        index = _to_device(torch.from_numpy(places), self._device)
        frames = gather_windows(self._frames, index[:, 0].contiguous(), self.sequence_length)
        return Batch(frames, *(column[index] for column in self._columns))


def free_bytes(device: torch.device) -> int:
    """Bytes free on the device, or in the host's memory for the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _to_device(index: Tensor, device: torch.device) -> Tensor:
    """The copy does not wait for the device."""
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index
