"""A stand-in for CUDA graphs, so that the bookkeeping around them is tested without a GPU."""

from dataclasses import fields, is_dataclass

import torch

from aime_fast.training import components
from aime_fast.training.compile.cuda_graph import Graph
from aime_fast.training.engines.engine import Engine
from aime_fast.training.trainer import DMCVBTrainer


class FakeRecorder:
    """Behaves as a graph does: a capture trains nothing and its results hold no numbers; a replay runs no Python.

    A capture runs the function and puts all state back. A replay runs it again, copies its results into the tensors of
    the first ones, and forgets what the Python objects of a step remember. `fails` names captures (from 1) that raise.
    """

    def __init__(self, fails=()):
        self.calls, self.fails, self.captures, self.trainer = [], fails, 0, None

    def state(self):
        """Every tensor that training changes."""
        engine, balancer = self.trainer.engine, self.trainer.balancer
        yield from engine.module.state_dict().values()
        for group in engine.optimizer.param_groups:
            yield from group["params"]
        for slots in engine.optimizer.state.values():
            yield from (slot for slot in slots.values() if isinstance(slot, torch.Tensor))
        yield from balancer.state.values()
        yield balancer.sample.samples
        yield from self.trainer.state.memory.state_dict().values()
        if frames := self.trainer.step._step.frames:
            yield from (frames.kept, frames.written)
        yield from (tensor for tensor in balancer.layout.direction or [] if tensor is not None)

    def warm_up(self, function):
        self.calls.append("warm up")
        return function()

    def wait(self):
        self.calls.append("wait")

    def capture(self, function):
        self.calls.append("capture")
        self.captures += 1
        kept = [(tensor, tensor.detach().clone()) for tensor in self.state()]
        result = function()
        with torch.no_grad():
            for tensor, old in kept:
                tensor.copy_(old)
        for tensor in tensors(result):
            tensor.detach().fill_(float("nan") if tensor.is_floating_point() else 0)
        if self.captures in self.fails:
            # As torch does: the end of a capture that has failed raises an error of its own.
            try:
                raise RuntimeError("Cannot copy between CPU and CUDA tensors\nduring capture")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")
        self.trainer.engine.abandon()

        def replay():
            self.calls.append("replay")
            for old, new in zip(tensors(result), tensors(function()), strict=True):
                old.copy_(new)
            self.trainer.engine.abandon()

        return Graph(replay, result)


def tensors(nest):
    if isinstance(nest, torch.Tensor):
        yield nest
    elif isinstance(nest, dict):
        yield from (tensor for member in nest.values() for tensor in tensors(member))
    elif isinstance(nest, list | tuple):
        yield from (tensor for member in nest for tensor in tensors(member))
    elif is_dataclass(nest):
        yield from (tensor for item in fields(nest) for tensor in tensors(getattr(nest, item.name)))


def captured_trainer(monkeypatch, options, choice="auto", fails=()):
    """A trainer on the CPU whose steps are captured by a fake recorder."""
    recorder = FakeRecorder(fails)
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "capture_obstacle", None)
        patched.setattr(components, "CudaRecorder", lambda device: recorder)
        recorder.trainer = DMCVBTrainer(**options, cuda_graph=choice)
    return recorder.trainer, recorder
