"""The `dali` back-end: windows' strips, out of mapped shards in the sampler's order, decoded by DALI ahead of use."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.dali_decoder import DaliDecoder, DecodeError, Part, Request
from aime_fast.data.backends.exact import ExactBackend
from aime_fast.data.batch import Batch
from aime_fast.data.libraries import load_dali
from aime_fast.data.shards.manifest import STRIP_LENGTH
from aime_fast.data.shards.strips import StripTable
from aime_fast.data.store import Episodes, FrameStore
from aime_fast.errors import UserError


class DaliBackend(ExactBackend):
    """Batches of `memory`'s windows, bit for bit where DALI's decoder agrees with Pillow's (it does on all codecs)."""

    def __init__(
        self,
        episodes: Episodes,
        config: LoaderConfig,
        seed: int,
        description: str,
        device: torch.device,
        threads: int,
    ) -> None:
        """Raise `UserError` for a recording or a pipe, without DALI, or when no episode is as long as a window."""
        if episodes.strips is None or isinstance(episodes, FrameStore):
            raise UserError(f"{episodes.description}: dali reads folders of shards; `aime-fast pack` into one first")
        load_dali()
        super().__init__(episodes, config, seed, description)
        self._strips: StripTable = episodes.strips
        self._device, self._threads = device, threads
        self._rank = (0, 1)
        self._training = self._decoder(lambda step: self._request(self.windows(step, *self._rank)))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """This rank's part of the global batch of `step`; the following ones are decoded ahead."""
        if (rank, world_size) != self._rank:
            self._rank = (rank, world_size)
            self._training.reset()
        return self._take(self._training, step)

    def evaluation_windows(self, stride: int) -> Iterator[Batch]:
        """Every sound window that starts at a multiple of `stride` once, in order, `batch_size` at a time."""
        parts = list(self.evaluation_parts(stride))
        decoder = self._decoder(lambda number: self._request(parts[min(number, len(parts) - 1)]))
        for number in range(len(parts)):
            yield self._take(decoder, number)

    def read(self, windows: np.ndarray) -> Batch:
        """A batch of these windows."""
        return self._take(self._decoder(lambda number: self._request(windows)), 0)

    def _decoder(self, request: Callable[[int], Request]) -> DaliDecoder:
        size, length = self.sampler.batch_size, self.sequence_length
        return DaliDecoder(request, self._strips.codec, size, length, self._device, self._threads)

    def _request(self, windows: np.ndarray) -> Request:
        return Request([self._parts(*window) for window in windows.tolist()], windows)

    def _parts(self, episode: int, start: int) -> list[Part]:
        """The stored strips that hold a window, and which of their frames it takes."""
        stop, first = start + self.sequence_length, int(self._strips.first[episode])
        parts = []
        for number in range(start // STRIP_LENGTH, -(-stop // STRIP_LENGTH)):
            offset = number * STRIP_LENGTH
            begin, end = max(start - offset, 0), min(stop - offset, STRIP_LENGTH)
            parts.append(Part(self._strips.stored(first + number), begin, end - begin))
        return parts

    def _take(self, decoder: DaliDecoder, number: int) -> Batch:
        """The decoded batch; strips that turn out not to decode are skipped, or raised as `UserError`."""
        while True:
            try:
                frames, windows = decoder.take(number)
            except DecodeError as error:
                self._find_undecodable(error)
                continue
            places = self.episodes.places(windows, self.sequence_length)
            return Batch(frames, *self.episodes.columns(places))

    def _find_undecodable(self, error: DecodeError) -> None:
        """Decode the strips of the failed requests one by one elsewhere, which names the damaged ones."""
        known = int(self._strips.damaged.sum())
        for request in error.requests:
            for episode, start in request.rest.tolist():
                first = int(self._strips.first[episode])
                for number in range(start // STRIP_LENGTH, -(-(start + self.sequence_length) // STRIP_LENGTH)):
                    self._strips.decode(first + number)
        if int(self._strips.damaged.sum()) == known:
            raise UserError(f"{self.episodes.description}: DALI cannot decode a batch ({error})") from error
