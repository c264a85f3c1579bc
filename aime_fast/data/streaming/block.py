"""Windows of a stream that are shuffled among themselves, copied out of their strips as these are read."""

import numpy as np

from aime_fast.data.episode import FRAME_SHAPE
from aime_fast.data.streaming.reader import Shards, StreamedStrip

Piece = tuple[StreamedStrip, int, int]
"""Frames `first` to `first + count` (exclusive) of a strip: (strip, first, count)."""


class Block:
    """Windows in the order of reading. Their strips stay in memory, as stored, for who decodes them."""

    def __init__(self, order: np.ndarray, sequence_length: int, action_dim: int) -> None:
        """`order` is int64 [size]: the rows in the order in which windows are given out."""
        size = len(order)
        self.order: list[int] = order.tolist()
        self.pieces: list[list[Piece]] = []
        """Of each window, end to end."""
        self.actions = np.empty((size, sequence_length, action_dim), np.float32)
        self.rewards = np.empty((size, sequence_length), np.float32)
        self.dones = np.empty((size, sequence_length), bool)

    def put(self, pieces: list[Piece]) -> None:
        """Add a window."""
        row = len(self.pieces)
        self.pieces.append(pieces)
        cut = [(piece.strip, slice(first, first + count)) for piece, first, count in pieces]
        np.concatenate([strip.actions[frames] for strip, frames in cut], out=self.actions[row])
        np.concatenate([strip.rewards[frames] for strip, frames in cut], out=self.rewards[row])
        np.concatenate([(strip.terminated | strip.truncated)[frames] for strip, frames in cut], out=self.dones[row])

    def is_damaged(self, row: int) -> bool:
        """Whether a strip of the window is known to be damaged."""
        return any(strip.damaged for strip, _, _ in self.pieces[row])


class FrameBlock(Block):
    """Windows with their frames decoded, and no strips.

    All frames are one array, which a later block takes over. Strips held one by one die in another order than they
    came in, and the C library keeps what lies between them, more with each epoch.
    """

    def __init__(
        self, order: np.ndarray, sequence_length: int, action_dim: int, shards: Shards, frames: np.ndarray | None = None
    ) -> None:
        """`frames` are those of a block of this size that is not used any more."""
        super().__init__(order, sequence_length, action_dim)
        self._shards = shards
        shape = (len(order), sequence_length, *FRAME_SHAPE)
        self.frames = np.empty(shape, np.uint8) if frames is None else frames
        """uint8 [size,T,64,64,3]; zeros for damaged strips."""
        self._damaged: list[bool] = []

    def put(self, pieces: list[Piece]) -> None:
        """Add a window and decode its frames."""
        row = len(self.pieces)
        super().put(pieces)
        decoded = [self._shards.frames(strip)[first : first + count] for strip, first, count in pieces]
        np.concatenate(decoded, out=self.frames[row])
        self._damaged.append(super().is_damaged(row))
        self.pieces[row] = []

    def is_damaged(self, row: int) -> bool:
        """Whether a strip of the window was found damaged."""
        return self._damaged[row]
