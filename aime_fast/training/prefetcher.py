"""Fetches the inputs of the next step while the current step trains."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from aime_fast.data.batch import Batch

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


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`; copies to a GPU go through pinned memory, so that they overlap with computation."""
    if device.type == "cuda" and batch.observations.device.type == "cpu":
        fields = (batch.observations, batch.actions, batch.rewards, batch.dones)
        batch = Batch(*(field.pin_memory() for field in fields))
    return batch.to(device)
