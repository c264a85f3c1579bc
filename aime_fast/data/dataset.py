"""A map-style PyTorch data set of the same windows, for training loops of your own."""

import operator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from aime_fast.data.store import Episodes, open_store
from aime_fast.data.windows import WindowSampler, valid_starts
from aime_fast.errors import UserError, check_at_least


class DMCVBDataset(Dataset[dict[str, Tensor]]):
    """Every window of T frames inside one episode, for any `torch.utils.data.DataLoader`.

    Item: `observations` float32 [T,3,S,S] in [-1,1], `actions` float32 [T,A] (`actions[t]` is taken after observing
    `observations[t]`), `rewards` float32 [T], `dones` and `terminated` bool [T]. It can be pickled; a worker process
    opens the data itself.
    """

    def __init__(
        self,
        data_path: str | Path | None = None,
        sequence_length: int = 16,
        environment: str | None = None,
        split: str = "train",
        window_stride: int = 1,
        image_size: int | None = None,
        actions: str | None = None,
    ) -> None:
        """Open the data as `open_store` does.

        Windows start at multiples of `window_stride`. `UserError` for bad data, for an `environment` other than the
        recorded one, and if T exceeds every episode.
        """
        self._arguments = (data_path, split, False, image_size, actions)
        self._store: Episodes | None = open_store(*self._arguments)
        recorded = self._store.environment
        if environment and recorded and environment != recorded:
            raise UserError(
                f"{data_path or 'the shipped sample'}: was recorded in {recorded}, not in {environment}; "
                f"give other data or environment={recorded!r}"
            )
        # Checks that some episode is long enough.
        WindowSampler(self._store.lengths, sequence_length, batch_size=1, seed=0)
        self.environment = recorded or environment
        """Recorded task, if known."""
        self.sequence_length = sequence_length
        """T, the number of frames in an item."""
        self.action_dim = self._store.action_dim
        """A, the size of an action."""
        self.notes = self._store.notes
        """What reading a recording changes, such as the size of its frames: one sentence each."""
        self.image_size = self._store.image_size
        """S, the side of a frame in pixels."""
        check_at_least(1, window_stride=window_stride)
        self._windows = valid_starts(self._store.lengths, sequence_length, window_stride)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self._store is None:
            self._store = open_store(*self._arguments)
        window = self._windows[operator.index(index)][None]
        self._store.sound(window, self.sequence_length)  # raises for a damaged chunk
        batch = self._store.gather(window, self.sequence_length)
        frames = batch.observations[0].permute(0, 3, 1, 2).contiguous().float()
        return {
            "observations": frames.mul_(2.0 / 255.0).sub_(1.0),
            "actions": batch.actions[0],
            "rewards": batch.rewards[0],
            "dones": batch.dones[0],
            "terminated": batch.terminated[0],
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}
