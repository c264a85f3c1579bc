"""The `dali-stream` back-end: shards streamed by DALI's WebDataset reader, windows decoded ahead by DALI."""

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.dali_decoder import DaliDecoder, Request
from aime_fast.data.backends.stream import Row, StreamBackend
from aime_fast.data.batch import Batch
from aime_fast.data.libraries import load_dali
from aime_fast.data.streaming.reader import Shards, StreamedChunk
from aime_fast.errors import UserError


class DaliStreamBackend(StreamBackend):
    """A stream whose checksums are compared between DALI's reader and DALI's decoder."""

    def __init__(self, shards: Shards, config: LoaderConfig, seed: int, description: str) -> None:
        """`UserError` for a pipe, without DALI, or if the split has no episode as long as a window."""
        load_dali()
        if shards.piped:
            raise UserError(f"{shards.place}: DALI reads files only; use --backend webdataset")
        super().__init__(shards, shards.read_with_dali, config, seed, description)
        # Pictures stay as stored until their batch is decoded.
        self.decodes = shards.codec.name == "raw"
        self._decoder = DaliDecoder(shards, self._request, self, shards.place)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`; pictures of the following ones are decoded ahead."""
        if self.decodes:
            return super().batch(step, rank, world_size)
        if self.turn_to((rank, world_size)):
            self._decoder.reset()
        return self.assemble(*self._decoder.take(step))

    def _request(self, step: int) -> Request[StreamedChunk, list[Row]]:
        rows = self.windows(step)
        return [block.pieces[row] for block, row in rows], rows
