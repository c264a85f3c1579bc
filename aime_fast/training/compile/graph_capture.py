"""The whole training step as one CUDA graph: after the capture, a step is one launch."""

from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from aime_fast.errors import UserError
from aime_fast.training.engines.engine import Engine, PlainEngine
from aime_fast.training.step import Inputs, StepResult, TrainingStep

WARM_UP = 3
"""Steps that run as written before the capture, on their own stream: they create states and workspaces."""


class CapturedStep:
    """Runs a `TrainingStep` as written at first, then replays it as a CUDA graph; every call is one real step.

    Inputs are copied to the memory that the graph reads; each call overwrites the results of the previous one. The
    graph keeps all settings that the host chose at the capture. `UserError` as in `check_capturable`.
    """

    def __init__(self, step: TrainingStep) -> None:
        check_capturable(step.engine)
        self.fetch = step.fetch
        self._step, self._done = step, 0
        self._stream = torch.cuda.Stream()
        self._beta = torch.zeros((), device=step.engine.device)
        self._captured: tuple[torch.cuda.CUDAGraph, Inputs, StepResult] | None = None

    def __call__(self, inputs: Inputs, beta: float) -> StepResult:
        """Train on `inputs` with KL weight `beta`."""
        self._beta.fill_(beta)
        if self._done < WARM_UP:
            self._done += 1
            return self._aside(inputs)
        if self._captured is None:
            self._captured = self._capture(inputs)
        graph, static, result = self._captured
        if static is not inputs:
            copy_tensors(inputs, static)
        graph.replay()
        return result

    def _aside(self, inputs: Inputs) -> StepResult:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._step(inputs, self._beta)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _capture(self, inputs: Inputs) -> tuple[torch.cuda.CUDAGraph, Inputs, StepResult]:
        """Record the step without running it; the thread that fetches inputs continues meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = self._step(inputs, self._beta)
        return graph, inputs, result


def check_capturable(engine: Engine) -> None:
    """Raise `UserError` if the device is a CPU, or the host takes part in the engine's step."""
    if engine.device.type != "cuda":
        raise UserError("--cuda-graph needs a GPU; remove it to train on a CPU")
    if type(engine) is not PlainEngine:
        raise UserError("--cuda-graph captures a step without DeepSpeed; remove --ds_config or --cuda-graph")


def copy_tensors(source: object, target: object) -> None:
    """Copy every tensor in a nest of dataclasses and dicts to its counterpart in `target`, in place.

    Raises ValueError if a shape or another value differs.
    """
    for name, new in _members(source).items():
        old = _members(target)[name]
        if isinstance(new, Tensor) and isinstance(old, Tensor):
            if new.shape != old.shape:
                raise ValueError(f"{name} has shape {tuple(new.shape)}, in the captured step {tuple(old.shape)}")
            old.copy_(new, non_blocking=True)
        elif is_dataclass(new) or isinstance(new, dict):
            copy_tensors(new, old)
        elif new != old:
            raise ValueError(f"{name} is {new}, in the captured step {old}")


def _members(nest: object) -> dict[str, object]:
    if isinstance(nest, dict):
        return nest
    return {item.name: getattr(nest, item.name) for item in fields(nest)}  # type: ignore[arg-type]
