"""Windows of a stream that are shuffled together, copied out of their chunks as these are read."""

import numpy as np

from aime_fast.data.streaming.reader import Shards, StreamedChunk

Piece = tuple[StreamedChunk, int, int]
"""Part of a window: (chunk, first frame in it, number of frames)."""


class Block:
    """Windows in reading order: decoded into `frames`, or with their chunks as stored.

    A later block takes over the array of frames: arrays freed out of order would leave gaps that the C library keeps.
    """

    def __init__(self, order: np.ndarray, length: int, action_dim: int, frames: np.ndarray | None) -> None:
        """`order` is int64 [n], the rows in the order in which windows are used; `length` is T.

        `frames` is the array to decode into, uint8 [n,T,S,S,3]; None keeps the chunks instead.
        """
        size = len(order)
        self.order: list[int] = order.tolist()
        self.frames = frames
        self.pieces: list[list[Piece]] = []
        """The parts of each window, in order; empty once decoded."""
        self.columns = (
            np.empty((size, length, action_dim), np.float32),
            np.empty((size, length), np.float32),
            np.empty((size, length), bool),
            np.empty((size, length), bool),
        )
        """Actions, rewards, dones and terminated."""
        self._damaged = np.zeros(size, bool)

    def put(self, pieces: list[Piece], shards: Shards) -> None:
        """Add the next window."""
        row = len(self.pieces)
        parts = [[column[first : first + n] for column in piece.chunk.columns] for piece, first, n in pieces]
        for column, values in zip(self.columns, zip(*parts, strict=True), strict=True):
            np.concatenate(values, out=column[row])
        if self.frames is not None:
            decoded = [shards.frames(piece)[first : first + n] for piece, first, n in pieces]
            np.concatenate(decoded, out=self.frames[row])
            self._damaged[row] = any(piece.damaged for piece, _, _ in pieces)
            pieces = []
        self.pieces.append(pieces)

    def is_damaged(self, row: int) -> bool:
        """Whether a chunk of the window is known to be damaged."""
        return bool(self._damaged[row]) or any(piece.damaged for piece, _, _ in self.pieces[row])
