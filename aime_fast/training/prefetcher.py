"""The next step's inputs, fetched while the current step trains."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from aime_fast.data.batch import Batch

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Calls `fetch(step)` one step ahead on one thread; what it raises is raised by `take`."""

    def __init__(self, fetch: Callable[[int], T], first: int, last: int | None) -> None:
        """Begins to fetch `first`, so that what a back-end does once overlaps with what comes before the first step.

        `last` is the step after the final one, never fetched; none where the run has no number of steps.
        """
        self._fetch, self._last = fetch, last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")
        self._ahead = self._begin(first)
        self.waited = 0.0
        """Seconds that `take` waited; the reader sets it back."""

    def take(self, step: int) -> T:
        """The inputs of `step`; begins to fetch those of `step + 1`."""
        started = time.perf_counter()
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = (step, self._thread.submit(self._fetch, step))
        inputs = self._ahead[1].result()
        self.waited += time.perf_counter() - started
        self._ahead = self._begin(step + 1)
        return inputs

    def _begin(self, step: int) -> tuple[int, Future[T]] | None:
        """Fetch a step, where the run has it."""
        wanted = self._last is None or step < self._last
        return (step, self._thread.submit(self._fetch, step)) if wanted else None

    def close(self) -> None:
        """Stop the thread after what it is fetching now."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, by way of pinned memory where the copy can then overlap with computing."""
    if device.type == "cuda" and batch.observations.device.type == "cpu":
        fields = (batch.observations, batch.actions, batch.rewards, batch.dones)
        batch = Batch(*(field.pin_memory() for field in fields))
    return batch.to(device)
