"""The `dali-stream` back-end: shards streamed by DALI's WebDataset reader, the windows decoded by DALI ahead of use."""

import numpy as np
import torch

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.dali_decoder import DaliDecoder, DecodeError, Part, Request
from aime_fast.data.backends.stream import Row, StreamBackend
from aime_fast.data.batch import Batch
from aime_fast.data.libraries import load_dali
from aime_fast.data.shards.codecs import CODECS
from aime_fast.data.streaming.block import Block
from aime_fast.data.streaming.reader import Shards
from aime_fast.errors import UserError


class DaliStreamBackend(StreamBackend):
    """A stream whose checksums are compared between DALI's reader and DALI's decoder."""

    def __init__(
        self,
        shards: Shards,
        config: LoaderConfig,
        split: str,
        seed: int,
        description: str,
        device: torch.device,
        threads: int,
    ) -> None:
        """`UserError` for a pipe, without DALI, or when the split has no episode as long as a window."""
        load_dali()
        if shards.piped:
            raise UserError(f"{shards.place}: DALI reads files only; use --backend webdataset")
        super().__init__(shards, shards.read_with_dali, config, split, seed, description)
        self._decoder = DaliDecoder(
            lambda step: _request(self.windows(step)),
            CODECS[self.manifest.codec],
            config.batch_size,
            config.sequence_length,
            device,
            threads,
        )

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`; pictures of the following ones are decoded ahead."""
        if self.manifest.codec == "raw":
            return super().batch(step, rank, world_size)
        if self.turn_to((rank, world_size)):
            self._decoder.reset()
        while True:
            try:
                frames, rows = self._decoder.take(step)
                return self.assemble(frames, rows)
            except DecodeError as error:
                self._find_undecodable(error)

    def new_block(self, order: np.ndarray) -> Block:
        """Of raw shards decoded frames, of others the pictures, for the decoder."""
        if self.manifest.codec == "raw":
            return super().new_block(order)
        return Block(order, self.sequence_length, self.action_dim)

    def _find_undecodable(self, error: DecodeError) -> None:
        """Decode the strips of the failed requests one by one elsewhere, which names the damaged ones."""
        rows = [row for request in error.requests for row in request.rest]
        strips = [strip for block, row in rows for strip, _, _ in block.pieces[row]]
        for strip in strips:
            self.shards.frames(strip)
        if not any(strip.damaged for strip in strips):
            raise UserError(f"{self.shards.place}: DALI cannot decode a batch ({error})") from error


def _request(rows: list[Row]) -> Request:
    windows = [block.pieces[row] for block, row in rows]
    return Request([[Part(np.frombuffer(s.stored, np.uint8), first, n) for s, first, n in w] for w in windows], rows)
