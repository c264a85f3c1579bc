"""What captures a function as a graph: the protocol, and CUDA's graphs."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Graph(Generic[T]):
    """What a function does on the device, ready to be done again."""

    replay: Callable[[], None]
    """Do it: one launch. Reads the memory that the function read, and overwrites its results."""
    result: T
    """What the function returned. The first replay gives its tensors their values."""


class Recorder(Protocol):
    """Makes graphs of functions that never wait for the device."""

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run a function under the conditions of a capture, so that all it creates only once is there."""
        ...

    def capture(self, function: Callable[[], T]) -> Graph[T]:
        """Record a function without doing what it does; raises what stops it, and leaves the device as it was."""
        ...

    def wait(self) -> None:
        """Wait for all that the device was given to do."""
        ...


class CudaRecorder:
    """CUDA graphs that share one stream and one pool of memory. Replay them in the order of their captures.

    The mode of the capture is `thread_local`: other threads, such as the one that loads the next batch or the one that
    watches NCCL, may allocate, copy and query events meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = torch.cuda.current_device() if device.index is None else device.index
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run a function on the stream of the captures: cuBLAS has a workspace for each stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def capture(self, function: Callable[[], T]) -> Graph[T]:
        """As in `Recorder`. Waits for the device, and gives the memory that is cached but unused back to it."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        mode = "thread_local"
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
                result = function()
        except BaseException:
            # Where the capture cannot even be ended, torch leaves its stream and its pool of memory in use.
            torch.cuda.set_stream(current)
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self._device, self._pool)
                torch._C._cuda_releasePool(self._device, self._pool)
            raise
        return Graph(graph.replay, result)

    def wait(self) -> None:
        """As in `Recorder`."""
        torch.cuda.synchronize(self._device)
