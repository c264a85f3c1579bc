"""A DALI pipeline from stored chunks to windows of frames, a few batches ahead."""

import io
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from aime_fast.data.libraries import load_dali
from aime_fast.data.shards.codecs import Codec
from aime_fast.data.shards.manifest import CHUNK_LENGTH
from aime_fast.errors import UserError

AHEAD = 2
"""Number of batches that are decoded ahead."""

Windows = TypeVar("Windows")


Part = tuple[np.ndarray, int, int]
"""Part of a window: (stored pixels of a chunk uint8 [bytes], first frame in it, number of frames)."""
Request = tuple[list[list[Part]], Windows]
"""One batch to decode: the parts of each window, in order, and the windows, which are returned with the frames."""


class DaliDecoder(Generic[Windows]):
    """Decodes `request(0)`, `request(1)`, ... in order, on the GPU's or the CPU's decoders.

    It decodes only the picture rows that a window needs. `take` may jump: batches decoded ahead are then dropped.
    """

    def __init__(
        self,
        request: Callable[[int], Request[Windows]],
        find_damaged: Callable[[list[Request[Windows]]], bool],
        place: str,
        codec: Codec,
        batch_size: int,
        shape: tuple[int, int],
        device: torch.device,
        threads: int,
    ) -> None:
        """`shape` is (T, S) of the windows; `place` starts error messages.

        If DALI cannot decode a batch, `find_damaged` decodes the requests' chunks otherwise and marks the damaged
        ones, so that new requests avoid them; it returns whether it found any.
        """
        self._request, self._find_damaged, self._place = request, find_damaged, place
        self._codec, self._batch_size, self._device, self._threads = codec, batch_size, device, threads
        self._length, self._size = shape
        self._most_parts = (self._length - 2) // CHUNK_LENGTH + 2
        """Largest number of chunks that a window touches."""
        self._blank = self._blank_picture()
        self._pending: deque[tuple[int, Request[Windows]]] = deque()
        self._next = 0
        self._pipeline: Any = None

    def take(self, number: int) -> tuple[Tensor, Windows]:
        """Frames uint8 [b,T,S,S,3] of `request(number)` on the device, and its windows.

        `UserError` if a batch cannot be decoded and no chunk of it is damaged.
        """
        while True:
            if self._pipeline is None:
                self._pipeline = self._build()
            if all(pending != number for pending, _ in self._pending):
                self._next = number
            try:
                outputs = self._pipeline.run()
            except RuntimeError as error:
                requests = [request for _, request in self._pending]
                self.reset()
                if not self._find_damaged(requests):
                    reason = " ".join(str(error).split())
                    raise UserError(f"{self._place}: DALI cannot decode a batch ({reason})") from error
                continue
            found, request = self._pending.popleft()
            if found == number:
                return self._frames(outputs[0]), request[1]

    def reset(self) -> None:
        """Drop the batches decoded ahead."""
        self._pipeline = None
        self._pending.clear()

    def _frames(self, output: Any) -> Tensor:
        """A copy of DALI's tensor, because DALI reuses its memory."""
        frames = from_dlpack(output.as_tensor()).clone()
        if frames.is_cuda:
            torch.cuda.current_stream().synchronize()
        return frames.view(len(frames), self._length, self._size, self._size, 3)

    def _source(self) -> tuple[list[np.ndarray], ...]:
        """Inputs of the next batch: a list over the windows for each part; for pictures, the cuts too."""
        number, request = self._next, self._request(self._next)
        self._next += 1
        self._pending.append((number, request))
        columns: list[list[np.ndarray]] = []
        for place in range(self._most_parts):
            parts = [window[place] if place < len(window) else (self._blank, 0, 0) for window in request[0]]
            if self._codec.name == "raw":
                frame = self._size**2 * 3
                columns.append([stored[first * frame : (first + count) * frame] for stored, first, count in parts])
            else:
                columns.append([stored for stored, _, _ in parts])
                # First row, rows to decode, rows to keep: the decoder returns at least one row.
                rows = self._size * np.array([(first, count, count) for _, first, count in parts], np.int32)
                columns.append(list(np.maximum(rows, np.array([0, 1, 0], np.int32))))
        return tuple(columns)

    def _build(self) -> Any:
        """The pipeline: encoded parts in, windows out."""
        dali = load_dali()
        fn, types = dali.fn, dali.types
        gpu, raw = self._device.type == "cuda", self._codec.name == "raw"
        pipeline = dali.Pipeline(
            batch_size=self._batch_size,
            num_threads=self._threads,
            device_id=(self._device.index or 0) if gpu else None,
            prefetch_queue_depth=AHEAD,
        )
        with pipeline:
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
                    pieces.append(fn.slice(rows, 0, cut[2:3], axes=[0]))
            frames = fn.cat(*pieces, axis=0) if len(pieces) > 1 else pieces[0]
            frames = fn.reshape(frames, shape=[self._length * self._size, self._size, 3])
            pipeline.set_outputs(frames.gpu() if gpu and raw else frames)
        pipeline.build()
        return pipeline

    def _blank_picture(self) -> np.ndarray:
        """A smallest picture: the decoder's input where a window has fewer parts than the largest number."""
        buffer = io.BytesIO()
        Image.new("RGB", (self._size, 1)).save(buffer, "PNG")
        return np.frombuffer(buffer.getvalue(), np.uint8)
