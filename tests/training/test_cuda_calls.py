"""The order of calls to CUDA around captures and copies, against a stand-in that notes them."""

from contextlib import contextmanager

import pytest
import torch

from aime_fast.training.compile.cuda_graph import CudaRecorder
from aime_fast.training.prefetcher import CopyStream

GPU = torch.device("cuda", 1)


class Cuda:
    """Notes the calls, keeps the current stream, and ends a capture that has failed as torch does: not at all."""

    def __init__(self, monkeypatch):
        self.calls, self.streams, self.current = [], 0, self.Stream(self, "training")
        self.of_thread = None
        for name in ("Stream", "stream", "current_stream", "set_stream", "graph_pool_handle", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, f"make_{name}", None) or getattr(self, name))
        monkeypatch.setattr(torch.cuda, "device", self.device)
        for call, word in (("_cuda_endAllocateToPool", "end"), ("_cuda_releasePool", "release")):
            note = lambda device, pool, word=word: self.calls.append(f"{word} pool {pool}")  # noqa: E731
            monkeypatch.setattr(torch._C, call, note, raising=False)

    class Stream:
        def __init__(self, cuda, name):
            self.cuda, self.name, self.device = cuda, name, GPU

        def wait_stream(self, other):
            self.cuda.calls.append(f"{self.name} waits for {other.name}")

        def synchronize(self):
            self.cuda.calls.append(f"host waits for {self.name}")

    def make_Stream(self, device):
        self.streams += 1
        return self.Stream(self, f"side {self.streams}")

    def current_stream(self, device=None):
        return self.current

    def set_stream(self, stream):
        self.current = stream

    @contextmanager
    def device(self, device):
        before, self.of_thread = self.of_thread, device
        yield
        self.of_thread = before

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def graph_pool_handle(self):
        return "pool"

    def CUDAGraph(self):
        cuda = self

        class Made:
            def replay(self):
                cuda.calls.append(f"replay on {cuda.current.name}")

        return Made()

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.calls.append(f"capture into {pool} on {stream.name}, {capture_error_mode}")
        before, self.current = self.current, stream
        yield
        self.current = before
        self.calls.append("captured")


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_steps_warm_up_where_they_are_captured_and_are_replayed_on_the_stream_of_training(cuda):
    recorder = CudaRecorder(GPU)
    assert recorder.warm_up(lambda: cuda.current.name) == "side 1"
    assert cuda.calls == ["side 1 waits for training", "training waits for side 1"]
    cuda.calls.clear()
    graph = recorder.capture(lambda: cuda.current.name)
    assert graph.result == "side 1"
    graph.replay()
    assert cuda.calls == ["capture into pool on side 1, thread_local", "captured", "replay on training"]


def test_a_capture_that_fails_gives_stream_and_pool_back(cuda):
    recorder = CudaRecorder(GPU)
    with pytest.raises(ZeroDivisionError):
        recorder.capture(lambda: 1 / 0)
    assert cuda.current.name == "training"
    assert cuda.calls[-2:] == ["end pool pool", "release pool pool"]


def test_a_pool_that_torch_has_ended_is_no_second_error(cuda, monkeypatch):
    def ended(device, pool):
        raise RuntimeError("not currently recording to this pool")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", ended, raising=False)
    with pytest.raises(ZeroDivisionError):
        CudaRecorder(GPU).capture(lambda: 1 / 0)
    assert "release pool pool" not in cuda.calls, "torch releases it with the graph"


def test_what_is_loaded_belongs_to_both_streams_and_only_the_loader_waits(cuda, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: cuda.calls.append(f"for {stream.name}"))
    load = CopyStream(GPU)
    assert cuda.calls == ["side 1 waits for training"], "data that stays on the device was written by training"
    cuda.calls.clear()
    found = load(
        lambda: {"device": cuda.of_thread, "stream": cuda.current.name, "x": torch.zeros(1), "y": {"z": torch.ones(2)}}
    )
    assert found["stream"] == "side 1" and found["device"] == GPU
    assert cuda.current.name == "training"
    assert cuda.calls == ["host waits for side 1", "for training", "for training"]


def test_a_cpu_needs_no_stream():
    assert CopyStream(torch.device("cpu"))(lambda: 3) == 3
