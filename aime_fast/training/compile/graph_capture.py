"""The training step as a CUDA graph: after the capture, the host launches a step at once."""

from collections.abc import Callable
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar

import torch

from aime_fast.errors import UserError
from aime_fast.profiling.phases import phase
from aime_fast.training.compile.cuda_graph import Graph, Recorder
from aime_fast.training.engines.host_group import HostGroup
from aime_fast.training.nest import Form, copied, copy_tensors, form
from aime_fast.training.step import Inputs, StepResult, TrainingStep

T = TypeVar("T")
WARM_UP = 3
"""Steps that run as written before the capture: they create states, workspaces and kernels."""
OWN = ("aime_fast", "aime_kernels", "deepspeed")
"""Packages whose line is named where a capture fails; torch's own lines say little."""


class CapturedStep:
    """Runs a `TrainingStep` as written at first, then replays it; every call is one real step.

    The whole step is one graph. Where the host takes part in the optimiser's step (ZeRO-1 and 2), what comes before and
    what comes after it are a graph each. Inputs are copied to the memory that the graphs read; each call overwrites the
    results of the previous one. Inputs of another form than the first ones run as written.

    If a capture fails on any rank, nothing has been trained: that step and all later ones run as written on all ranks,
    and `take_message` says why. With `demanded` this is a `UserError`.
    """

    def __init__(self, step: TrainingStep, recorder: Recorder, hosts: HostGroup, demanded: bool) -> None:
        self.fetch = step.fetch
        self._step, self._recorder, self._hosts, self._demanded = step, recorder, hosts, demanded
        self._beta = torch.zeros((), device=step.engine.device)
        self._form: Form | None = None
        self._warm = 0
        self._static: Inputs | None = None
        self._graphs: dict[str, Graph[Any]] = {}
        self._gave_up = False
        self._message: str | None = None

    def __call__(self, inputs: Inputs, beta: float) -> StepResult:
        """Train on `inputs` with KL weight `beta`."""
        if self._gave_up:
            return self._step(inputs, beta)
        # What changes with the step lies in memory: a graph would keep a number of the host.
        self._beta.fill_(beta)
        now = form(inputs)
        self._form = self._form or now
        if now != self._form:
            return self._step(inputs, self._beta)
        if self._warm < WARM_UP:
            self._warm += 1
            return self._recorder.warm_up(lambda: self._step(inputs, self._beta))
        if self._static is None:
            self._static = copied(inputs)
        copy_tensors(inputs, self._static)
        return self._played(self._static)

    @property
    def description(self) -> str:
        """How the step runs, for the user."""
        graphs = "two CUDA graphs around ZeRO's own" if self._step.engine.steps_from_host else "a CUDA graph"
        return f"step as {graphs} after {WARM_UP} steps"

    def take_message(self) -> str | None:
        """Why the steps run as written from now on, once; else None."""
        message, self._message = self._message, None
        return message

    def close(self) -> None:
        """Drop the graphs; NCCL's communicators cannot be closed while graphs hold their reductions."""
        self._recorder.wait()
        self._graphs.clear()
        self._static = None

    def _played(self, inputs: Inputs) -> StepResult:
        step, beta = self._step, self._beta
        if not step.engine.steps_from_host:
            return self._play("step", lambda: step(inputs, beta))
        computed = self._play("compute", lambda: step.compute(inputs, beta))
        step.update(computed)
        self._play("follow", lambda: step.follow(inputs, computed))
        return computed.result

    def _play(self, part: str, function: Callable[[], T]) -> T:
        """One part of the step, captured at its first call; as written once a capture has failed."""
        if part not in self._graphs and not self._gave_up:
            self._capture(part, function)
        if self._gave_up:
            return function()
        graph: Graph[T] = self._graphs[part]
        with phase("replay"):
            graph.replay()
        return graph.result

    def _capture(self, part: str, function: Callable[[], T]) -> None:
        obstacle = cause = None
        try:
            self._graphs[part] = self._recorder.capture(function)
        except Exception as error:
            obstacle = f"{part} at {_first_cause(error)}"
            # A run that goes on must not keep it: its frames hold the memory of the capture.
            cause = error if self._demanded else None
        # Ranks that replay a graph and ranks that do not would keep in step, but with `demanded` one would end alone.
        obstacles = [each for each in self._hosts.gather(obstacle) if each]
        if obstacles:
            self._give_up(obstacles[0], cause)

    def _give_up(self, obstacle: str, cause: Exception | None) -> None:
        self._gave_up, self._static = True, None
        self._graphs.clear()
        self._step.engine.abandon()
        if self._demanded:
            raise UserError(
                f"--cuda-graph on: the step cannot be captured ({obstacle}); use --cuda-graph auto to train as written"
            ) from cause
        self._message = f"the step runs as written, because capturing it as a CUDA graph failed: {obstacle}"


def _first_cause(error: BaseException) -> str:
    """The first error of a chain and its place: ending a capture that has failed raises errors of its own."""
    place = _place(error)
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
        place = _place(error) or place
    return f"{place}: {type(error).__name__}: {error}".splitlines()[0][:300]


def _place(error: BaseException) -> str:
    """File and line of the innermost frame that runs the code of `OWN` packages; empty if there is none."""
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        module, path = frame.f_globals.get("__name__", ""), Path(frame.f_code.co_filename)
        if module.partition(".")[0] in OWN:
            depth = module.count(".") + 1 + (path.name == "__init__.py")
            place = f"{Path(*path.parts[-depth:])}:{line}"
    return place
