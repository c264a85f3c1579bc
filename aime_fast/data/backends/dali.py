"""The `dali` back-end: the chunks of windows, from mapped shards in the sampler's order, decoded ahead by DALI."""

from collections.abc import Callable, Iterator

import numpy as np

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.backend import ExactBackend
from aime_fast.data.backends.dali_decoder import DaliDecoder, Request
from aime_fast.data.batch import Batch
from aime_fast.data.libraries import load_dali
from aime_fast.data.store import Episodes
from aime_fast.errors import UserError


class DaliBackend(ExactBackend):
    """The same batches as `memory`, bit for bit if DALI's decoder agrees with Pillow's (it does for all codecs)."""

    def __init__(self, episodes: Episodes, config: LoaderConfig, seed: int, description: str) -> None:
        """`UserError` for a recording or a pipe, without DALI, or if no episode is as long as a window."""
        if episodes.chunks is None or episodes.held is not None:
            raise UserError(f"{episodes.description}: dali reads folders of shards; `aime-fast pack` into one first")
        load_dali()
        super().__init__(episodes, config, seed, description)
        self._chunks = episodes.chunks
        self._rank = (0, 1)
        self._training = self._decoder(lambda step: self.windows(step, *self._rank))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`; the following ones are decoded ahead."""
        if (rank, world_size) != self._rank:
            self._rank = (rank, world_size)
            self._training.reset()
        return self._take(self._training, step)

    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every sound window that starts at a multiple of `stride` once, in order, `batch_size` at a time."""
        parts = list(self.evaluation_parts(stride))
        decoder = self._decoder(lambda number: parts[min(number, len(parts) - 1)])
        for number in range(len(parts)):
            yield self._take(decoder, number)

    def read(self, windows: np.ndarray) -> Batch:
        """A batch of these windows."""
        return self._take(self._decoder(lambda number: windows), 0)

    def _take(self, decoder: DaliDecoder[int, np.ndarray], number: int) -> Batch:
        frames, windows = decoder.take(number)
        return Batch(frames, *self.episodes.columns(self.episodes.places(windows, self.sequence_length)))

    def _decoder(self, windows_of: Callable[[int], np.ndarray]) -> DaliDecoder[int, np.ndarray]:
        """Decodes the windows int64 [b,2] of a batch number."""

        def request(number: int) -> Request[int, np.ndarray]:
            windows, parts = windows_of(number), self._chunks.parts
            return [parts(episode, start, self.sequence_length) for episode, start in windows.tolist()], windows

        return DaliDecoder(self._chunks, request, self, self.episodes.description)
