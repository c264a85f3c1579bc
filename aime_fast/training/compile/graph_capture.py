"""The whole training step as one CUDA graph: after capture a step is one launch."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from aime_fast.errors import UserError
from aime_fast.training.engines.engine import Engine, PlainEngine
from aime_fast.training.step import Inputs, StepResult, TrainingStep

WARM_UP = 3
"""Steps that run as written, on a stream of their own, before the capture: they make state, workspaces and choices."""


class CapturedStep:
    """Calls a `TrainingStep` for the first steps, then replays it as a graph; every call is one real step.

    Inputs are copied to where the graph reads them, and its results are overwritten by the next call. Settings that
    the host decides a step at a time must not change: the graph holds what they were.

    Raises:
        UserError: no GPU, or an engine whose step the host takes part in.
    """

    def __init__(self, step: TrainingStep) -> None:
        check_capturable(step.engine)
        self._step, self._done = step, 0
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Inputs | None = None
        self._beta = torch.zeros((), device=step.engine.device)
        self._result: StepResult | None = None

    def fetch(self, step: int) -> Inputs:
        """As the step itself fetches."""
        return self._step.fetch(step)

    def __call__(self, inputs: Inputs, beta: float) -> StepResult:
        """Train on `inputs` with KL weight `beta`."""
        self._beta.fill_(beta)
        if self._done < WARM_UP:
            self._done += 1
            return self._aside(inputs)
        if self._graph is None or self._inputs is None:
            self._inputs = inputs
            self._capture(inputs)
        else:
            copy_tensors(inputs, self._inputs)
        assert self._graph is not None and self._result is not None
        self._graph.replay()
        return self._result

    def _aside(self, inputs: Inputs) -> StepResult:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._step(inputs, self._beta)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _capture(self, inputs: Inputs) -> None:
        """Record the step without running it; the thread that fetches inputs goes on meanwhile."""
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._result = self._step(inputs, self._beta)


def check_capturable(engine: Engine) -> None:
    """Refuse what cannot be captured, with `UserError`."""
    if engine.device.type != "cuda":
        raise UserError("--cuda-graph needs a GPU; leave it out on a CPU")
    if type(engine) is not PlainEngine:
        raise UserError("--cuda-graph captures a step without DeepSpeed; leave out --ds_config, or --cuda-graph")


def copy_tensors(source: Any, target: Any) -> None:
    """Copy every tensor of one nest of dataclasses into its counterpart of the other, in place.

    Raises ValueError where something else differs between the two, or a shape does.
    """
    for item in fields(source):
        new, old = getattr(source, item.name), getattr(target, item.name)
        if isinstance(new, Tensor):
            if new.shape != old.shape:
                raise ValueError(f"{item.name} has shape {tuple(new.shape)}, the captured step {tuple(old.shape)}")
            old.copy_(new, non_blocking=True)
        elif is_dataclass(new):
            copy_tensors(new, old)
        elif isinstance(new, dict):
            for name, value in new.items():
                old[name].copy_(value, non_blocking=True)
        elif new != old:
            raise ValueError(f"{item.name} is {new}, in the captured step it was {old}")
