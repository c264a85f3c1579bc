"""Fetches the inputs of the next step while the current step trains."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from aime_fast.data.batch import Batch
from aime_fast.profiling.phases import phase
from aime_fast.training.nest import tensors

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls `fetch(step)` for consecutive steps on one thread, one step ahead; `take` raises what `fetch` raises."""

    def __init__(self, fetch: Callable[[int], T], first: int, last: int | None) -> None:
        """Start to fetch step `first`. `last` (exclusive) is the end of the run; None if it has no fixed number."""
        self._fetch, self._next, self._last = fetch, first, last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetcher")
        self._ahead = self._submit()
        self.waited = 0.0
        """Seconds that `take` has waited; the reader resets it."""

    def take(self) -> T:
        """Wait for the inputs of the next step, and start to fetch those of the step after it."""
        started = time.perf_counter()
        with phase("wait"):
            inputs = (self._ahead or self._thread.submit(self._fetch, self._next)).result()
        self.waited += time.perf_counter() - started
        self._next += 1
        self._ahead = self._submit()
        return inputs

    def _submit(self) -> Future[T] | None:
        within = self._last is None or self._next < self._last
        return self._thread.submit(self._fetch, self._next) if within else None

    def close(self) -> None:
        """Stop the thread after its current fetch."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class CopyStream:
    """Runs functions that load tensors on a stream of their own, if the device is a GPU.

    On the stream of training, a copy would wait for the steps that are queued there, and the next step for the copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._training = torch.cuda.current_stream(device)
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(self._training)  # data that stays on the device has been written there

    def __call__(self, load: Callable[[], T]) -> T:
        """What `load` returns, a nest of tensors, complete on the device and ready for the stream of training."""
        if self._stream is None:
            return load()
        # The device belongs to a thread: a new one is at GPU 0, and would make a context there on every rank.
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            loaded = load()
        self._stream.synchronize()
        for tensor in tensors(loaded):
            tensor.record_stream(self._training)  # its memory is not used again before training has read it
        return loaded


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`; copies to a GPU go through pinned memory, so that they overlap with computation."""
    if device.type == "cuda" and batch.observations.device.type == "cpu":
        batch = batch.each(torch.Tensor.pin_memory)
    return batch.to(device)
