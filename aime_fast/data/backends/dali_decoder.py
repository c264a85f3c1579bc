"""A DALI pipeline from stored chunks to windows of frames, a few batches ahead."""

import io
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from aime_fast.data.backends.backend import Backend, training_device
from aime_fast.data.libraries import load_dali
from aime_fast.data.shards.codecs import Codec
from aime_fast.data.shards.manifest import CHUNK_LENGTH
from aime_fast.errors import UserError

AHEAD = 2
"""Number of batches that are decoded ahead."""
MOST_THREADS = 4

Key = TypeVar("Key", contravariant=True)
Windows = TypeVar("Windows")
Request = tuple[list[list[tuple[Key, int, int]]], Windows]
"""One batch to decode: the parts of each window (chunk, first frame in it, number of frames), in order, and the
windows, which are returned with the frames."""


class StoredChunks(Protocol[Key]):
    """Chunks whose pixels are still as stored."""

    codec: Codec

    def stored(self, chunk: Key) -> np.ndarray:
        """The stored pixels, uint8 [bytes]."""

    def finds_damage(self, chunk: Key) -> bool:
        """Decode a chunk without DALI and mark it if it is damaged; whether that was not known."""


class DaliDecoder(Generic[Key, Windows]):
    """Decodes the picture rows that `request(0)`, `request(1)`, ... need, on the GPU's or the CPU's decoders."""

    def __init__(
        self, chunks: StoredChunks[Key], request: Callable[[int], Request[Key, Windows]], backend: Backend, place: str
    ) -> None:
        """Batch and window are those of `backend`; `place` starts error messages."""
        self._chunks, self._request, self._place, self._codec = chunks, request, place, chunks.codec
        self._batch_size, self._device = backend.sampler.batch_size, training_device()
        self._length, self._size = backend.sequence_length, backend.image_size
        self._most_parts = (self._length - 2) // CHUNK_LENGTH + 2
        """Largest number of chunks that a window touches."""
        buffer = io.BytesIO()
        Image.new("RGB", (self._size, 1)).save(buffer, "PNG")
        self._blank = np.frombuffer(buffer.getvalue(), np.uint8)
        """A smallest picture: the decoder's input where a window has fewer parts than `_most_parts`."""
        self._pending: deque[tuple[int, Request[Key, Windows]]] = deque()
        self._next = 0
        self._pipeline: Any = None

    def take(self, number: int) -> tuple[Tensor, Windows]:
        """Frames uint8 [b,T,S,S,3] of `request(number)` on the device, and its windows. A jump drops batches ahead.

        If DALI cannot decode a batch, new requests are made once damaged chunks are found. `UserError` if none is.
        """
        while True:
            if self._pipeline is None:
                self._pipeline = self._build()
            if all(pending != number for pending, _ in self._pending):
                self._next = number
            try:
                outputs = self._pipeline.run()
            except RuntimeError as error:
                windows = [window for _, request in self._pending for window in request[0]]
                self.reset()
                found_damage = [self._chunks.finds_damage(chunk) for window in windows for chunk, _, _ in window]
                if not any(found_damage):
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
        blank, columns = (self._blank, 0, 0), list[list[np.ndarray]]()
        for place in range(self._most_parts):
            parts = [
                (self._chunks.stored(window[place][0]), *window[place][1:]) if place < len(window) else blank
                for window in request[0]
            ]
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
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        pipeline = dali.Pipeline(
            batch_size=self._batch_size,
            num_threads=max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // processes)),
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
