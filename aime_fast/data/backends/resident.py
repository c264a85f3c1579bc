"""The `resident` back-end: all frames on the device as uint8, one gather a batch."""

from dataclasses import replace

import numpy as np
import psutil
import torch

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.backend import ExactBackend, training_device
from aime_fast.data.batch import Batch
from aime_fast.data.shards.manifest import CHUNK_LENGTH
from aime_fast.data.store import Episodes
from aime_fast.data.survey import Survey
from aime_fast.data.windows import valid_starts
from aime_fast.errors import UserError
from aime_kernels import gather_windows


class ResidentBackend(ExactBackend):
    """Copies windows out of tensors that stay on the device during the run."""

    def __init__(self, episodes: Episodes, config: LoaderConfig, seed: int, description: str) -> None:
        """Load and check every frame; `UserError` if they do not fit, or no episode is as long as a window."""
        super().__init__(episodes, config, seed, description)
        self._device = device = training_device()
        free = free_bytes(device)
        if episodes.frame_bytes > free:
            raise UserError(
                f"{episodes.description}: {episodes.frame_bytes / 1e9:.1f} GB of frames, but {free / 1e9:.1f} GB are "
                f"free on {device}; use --backend memory or dali"
            )
        shape = (sum(episodes.lengths), self.image_size, self.image_size, 3)
        self._frames = torch.empty(shape, dtype=torch.uint8, device=device)
        for episode, start in valid_starts(episodes.lengths, 1, CHUNK_LENGTH).tolist():
            place = int(episodes.first[episode]) + start
            frames = np.array(episodes.chunk_frames(episode, start))
            self._frames[place : place + len(frames)].copy_(torch.from_numpy(frames))
        columns = (episodes.actions, episodes.rewards, episodes.dones, episodes.terminated)
        self._columns = [torch.from_numpy(column).to(device) for column in columns]
        self._survey = episodes.survey()
        # Free the frames in host memory.
        self.episodes = replace(episodes, held=None)

    def survey(self) -> Survey:
        """The mean of many frames of the split, evenly spaced, and what can't be learnt from the split."""
        return self._survey

    def read(self, windows: np.ndarray) -> Batch:
        """A batch of these windows, on the device."""
        index = torch.from_numpy(self.episodes.places(windows, self.sequence_length))
        if self._device.type == "cuda":  # from pinned memory, so that the copy does not wait for the device
            index = index.pin_memory().to(self._device, non_blocking=True)
        frames = gather_windows(self._frames, index[:, 0].contiguous(), self.sequence_length)
        return Batch(frames, *(column[index] for column in self._columns))


def free_bytes(device: torch.device) -> int:
    """Free bytes on the device, or in host memory for the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
