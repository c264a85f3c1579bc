"""A DALI pipeline from stored strips to windows of frames, a few batches ahead of who takes them."""

import io
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from aime_fast.data.episode import FRAME_BYTES, FRAME_SHAPE, IMAGE_SIZE
from aime_fast.data.libraries import load_dali
from aime_fast.data.shards.codecs import Codec
from aime_fast.data.shards.manifest import STRIP_LENGTH

AHEAD = 2
"""Batches that are being decoded while one trains."""


@dataclass(frozen=True)
class Part:
    """Frames `first` to `first + count` (exclusive) of one strip's stored pixels."""

    stored: np.ndarray
    """uint8 [bytes]."""
    first: int
    count: int


@dataclass(frozen=True)
class Request:
    """One batch to decode: each window is its parts end to end."""

    windows: list[list[Part]]
    rest: Any
    """Given back with the frames."""


class DecodeError(Exception):
    """Some picture among `requests` could not be decoded."""

    def __init__(self, requests: list[Request], reason: str) -> None:
        super().__init__(reason)
        self.requests = requests


class DaliDecoder:
    """Decodes `request(0)`, `request(1)`, ... in order, on the GPU's or the CPU's decoders.

    Only the rows of a picture that a window needs are decoded. `take` may jump: what was decoded ahead is dropped.
    """

    def __init__(
        self,
        request: Callable[[int], Request],
        codec: Codec,
        batch_size: int,
        sequence_length: int,
        device: torch.device,
        threads: int,
    ) -> None:
        self._request, self._codec, self._batch_size, self._device = request, codec, batch_size, device
        self._length, self._threads = sequence_length, threads
        self._most_parts = (sequence_length - 2) // STRIP_LENGTH + 2
        """Strips that a window can touch."""
        self._blank = _blank_picture()
        self._pending: deque[tuple[int, Request]] = deque()
        self._next = 0
        self._pipeline: Any = None

    def take(self, number: int) -> tuple[Tensor, Any]:
        """Frames uint8 [b,T,64,64,3] of `request(number)` on the device, and its `rest`.

        `DecodeError` when a picture cannot be decoded; the next call starts afresh.
        """
        if self._pipeline is None:
            self._pipeline = self._build()
        if all(pending != number for pending, _ in self._pending):
            self._next = number
        while True:
            try:
                outputs = self._pipeline.run()
            except RuntimeError as error:
                requests = [request for _, request in self._pending]
                self.reset()
                raise DecodeError(requests, " ".join(str(error).split())) from error
            found, request = self._pending.popleft()
            if found == number:
                return self._frames(outputs[0]), request.rest

    def reset(self) -> None:
        """Forget what was decoded ahead."""
        self._pipeline = None
        self._pending.clear()

    def _frames(self, output: Any) -> Tensor:
        """A copy of DALI's tensor, whose memory it will use again."""
        frames = from_dlpack(output.as_tensor()).clone()
        if frames.is_cuda:
            torch.cuda.current_stream().synchronize()
        return frames.view(len(frames), self._length, *FRAME_SHAPE)

    def _source(self) -> tuple[list[np.ndarray], ...]:
        """Inputs of the next batch: for each part of a window a list over the windows; for pictures, cuts too."""
        number, request = self._next, self._request(self._next)
        self._next += 1
        self._pending.append((number, request))
        columns: list[list[np.ndarray]] = []
        for place in range(self._most_parts):
            parts = [window[place] if place < len(window) else Part(self._blank, 0, 0) for window in request.windows]
            columns.append([self._input(part) for part in parts])
            if self._codec.name != "raw":
                columns.append([_cut(part) for part in parts])
        return tuple(columns)

    def _input(self, part: Part) -> np.ndarray:
        if self._codec.name != "raw":
            return part.stored
        return part.stored[part.first * FRAME_BYTES : (part.first + part.count) * FRAME_BYTES]

    def _build(self) -> Any:
        """The pipeline: encoded parts in, whole windows out."""
        dali = load_dali()
        fn, types = dali.fn, dali.types
        gpu = self._device.type == "cuda"
        pipeline = dali.Pipeline(
            batch_size=self._batch_size,
            num_threads=self._threads,
            device_id=(self._device.index or 0) if gpu else None,
            prefetch_queue_depth=AHEAD,
        )
        with pipeline:
            raw = self._codec.name == "raw"
            kinds = [types.UINT8] if raw else [types.UINT8, types.INT32]
            inputs = fn.external_source(
                source=self._source,
                num_outputs=len(kinds) * self._most_parts,
                dtype=kinds * self._most_parts,
                ndim=[1] * (len(kinds) * self._most_parts),
            )
            if raw:
                pieces = list(inputs)
            else:
                pieces = []
                for stored, cut in zip(inputs[::2], inputs[1::2], strict=True):
                    rows = fn.decoders.image_slice(
                        stored, cut[0:1], cut[1:2], axes=[0], output_type=types.RGB, device="mixed" if gpu else "cpu"
                    )
                    # At least one row is decoded; a part that is not there keeps none.
                    pieces.append(fn.slice(rows, 0, cut[2:3], axes=[0]))
            frames = fn.cat(*pieces, axis=0) if len(pieces) > 1 else pieces[0]
            frames = fn.reshape(frames, shape=[self._length * IMAGE_SIZE, IMAGE_SIZE, 3])
            pipeline.set_outputs(frames.gpu() if gpu and raw else frames)
        pipeline.build()
        return pipeline


def _cut(part: Part) -> np.ndarray:
    """First row, rows to decode and rows to keep of a part's picture."""
    rows = part.count * IMAGE_SIZE
    return np.array([part.first * IMAGE_SIZE, max(rows, 1), rows], np.int32)


def _blank_picture() -> np.ndarray:
    """A smallest picture, as the decoder's input where a window has fewer parts than another may have."""
    buffer = io.BytesIO()
    Image.new("RGB", (IMAGE_SIZE, 1)).save(buffer, "PNG")
    return np.frombuffer(buffer.getvalue(), np.uint8)
