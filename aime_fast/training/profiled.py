"""Records training steps of a run: for torch's profiler, or marked for Nsight. Trains in a folder that is removed."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from aime_fast.config import TrainConfig
from aime_fast.profiling.advice import Setting
from aime_fast.profiling.launches import counted_launches
from aime_fast.profiling.phases import MARKED, mark_phases, unmark_phases
from aime_fast.profiling.report import Peak, Profile, make_profile
from aime_fast.profiling.trace import Trace, read_trace
from aime_fast.profiling.work import Arithmetic, Work
from aime_fast.training.compile.compilation import uncompiled
from aime_fast.training.compile.graph_capture import WARM_UP
from aime_fast.training.run.device import describe
from aime_fast.training.step import TrainingStep
from aime_fast.training.trainer import DMCVBTrainer

TRACE, MEMORY, LOG = "trace.json.gz", "memory.pickle", "run.log"
MEMORY_EVENTS = 200_000


def recorded(
    config: TrainConfig, steps: int, warm_up: int, folder: Path, peak: Callable[[str, str], Peak | None]
) -> tuple[Profile, Trace, Setting]:
    """Train `warm_up` steps, `steps` to be timed, and `steps` under torch's profiler, each with a checkpoint after it.

    One more step begins each part, because nothing has read its data ahead; the table leaves it out.

    folder: gets the trace, on a card a snapshot of its memory, and what the run printed. peak: the peak of a card by
    its name and the precision of products.
    """
    with _trainer(config, 2 * (steps + 1) + warm_up + WARM_UP + 1, folder) as trainer:
        arithmetic = _arithmetic(trainer)
        warm_up = _warmed_up(trainer, warm_up)
        _fit(trainer, warm_up + steps + 1)
        step_ms = _milliseconds(trainer)
        with _memory_history(trainer.engine.device, folder / MEMORY), _profiler(trainer.engine.device) as profiled:
            _fit(trainer, warm_up + 2 * (steps + 1))
        profiled.export_chrome_trace(str(folder / TRACE))
        work = _work(trainer, arithmetic)
        setting, title = _setting(trainer, config), _title(trainer)
        card = _card(trainer)
        joined = trainer.compilation is not None
        bound = peak(card, trainer.engine.precision) if card else None
    trace = read_trace(folder / TRACE)
    return make_profile(title, trace, work, step_ms, joined, bound), trace, setting


def marked(config: TrainConfig, steps: int, warm_up: int, folder: Path) -> None:
    """Train `warm_up` steps, and then `steps` and a checkpoint within the NVTX range `MARKED`.

    Every phase is an NVTX range. `UserError` where NVTX is missing.
    """
    marks = mark_phases()
    try:
        with _trainer(config, steps + warm_up + WARM_UP + 1, folder) as trainer:
            warm_up = _warmed_up(trainer, warm_up)
            with marks.spanning(MARKED):
                _fit(trainer, warm_up + steps)
    finally:
        unmark_phases()


@contextmanager
def _trainer(config: TrainConfig, steps: int, folder: Path) -> Iterator[DMCVBTrainer]:
    """A run of its own that does not end within `steps`, so it ends with a pause: no validation, one checkpoint."""
    with ExitStack() as closing:
        own = Path(closing.enter_context(TemporaryDirectory(dir=folder, prefix="run-")))
        logging = replace(config.logging, log_every=steps + 1, figures_every=0)
        out, more = str(own / "run"), steps + 1
        lasting = replace(config, steps=more, epochs=None, minutes=None, checkpoint_every=more, logging=logging)
        trainer = DMCVBTrainer(replace(lasting, out=out, resume=None))
        closing.callback(trainer.close)
        log = closing.enter_context((folder / LOG).open("w", encoding="utf-8"))
        closing.enter_context(redirect_stdout(log))
        closing.enter_context(redirect_stderr(log))
        yield trainer


def _warmed_up(trainer: DMCVBTrainer, steps: int) -> int:
    """Train this many steps, or as many as it takes until steps are replayed; their number."""
    steps = max(steps, WARM_UP + 1) if trainer.capture else steps
    _fit(trainer, steps)
    return steps


def _fit(trainer: DMCVBTrainer, until: int) -> None:
    """Train up to step `until`. Training ends early and well after Ctrl-C; a profile of fewer steps is none."""
    if trainer.fit(until).signal:
        raise KeyboardInterrupt


@contextmanager
def _profiler(device: torch.device) -> Iterator[profile]:
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    # Data is read on a thread of its own; without this the profiler sees the thread that starts it alone.
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=kinds, acc_events=True, experimental_config=everywhere) as profiled:
        yield profiled
        if device.type == "cuda":
            torch.cuda.synchronize(device)


@contextmanager
def _memory_history(device: torch.device, path: Path) -> Iterator[None]:
    """Write what was allocated on the card inside, and by which line, for https://pytorch.org/memory_viz."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
    try:
        yield
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def _as_written(trainer: DMCVBTrainer, index: int) -> Callable[[], object]:
    """A call that takes one step as written, whatever form the run's steps have."""
    step = TrainingStep(trainer.engine, trainer.balancer, trainer.aggregator, trainer.backend, trainer.config)
    inputs, beta = step.fetch(index), torch.tensor(0.5, device=trainer.engine.device)
    return lambda: step(inputs, beta)


def _arithmetic(trainer: DMCVBTrainer) -> Arithmetic:
    """Operations and bytes of a second step, which finds the states that the first one makes."""
    with uncompiled():
        _as_written(trainer, 0)()
        call = _as_written(trainer, 1)
        with Arithmetic() as counted:
            call()
    return counted


def _work(trainer: DMCVBTrainer, arithmetic: Arithmetic) -> dict[str, Work]:
    """The work of a step by phase. Launches are counted on a CPU only, at the end: they leave zeros as results."""
    launches: dict[str, int] = {}
    if trainer.engine.device.type == "cpu":
        call = _as_written(trainer, 2)
        with uncompiled(), counted_launches() as counted:
            call()
        launches = counted.by_phase()
    phases = {*arithmetic.flops, *arithmetic.bytes, *launches}
    return {name: Work(arithmetic.flops[name], arithmetic.bytes[name], launches.get(name, 0)) for name in phases}


def _milliseconds(trainer: DMCVBTrainer) -> float:
    """A step of the last interval that the run logged."""
    rows = [json.loads(line) for line in (trainer.folder.path / "metrics.jsonl").read_text().splitlines()]
    speed = [row["frames_per_second"] for row in rows if row["split"] == "train"][-1]
    loader = trainer.config.loader
    return 1e3 * loader.batch_size * loader.sequence_length / speed


def _setting(trainer: DMCVBTrainer, config: TrainConfig) -> Setting:
    return Setting(
        compiled=trainer.compilation is not None,
        captured=trainer.capture is not None,
        bf16=config.optim.precision == "bf16",
        threads=torch.get_num_threads(),
        cores=len(os.sched_getaffinity(0)),
        every={
            "log": config.logging.log_every,
            "validation": trainer.backend.steps_per_epoch,
            "checkpoint": config.checkpoint_every,
        },
    )


def _title(trainer: DMCVBTrainer) -> str:
    config, engine = trainer.config, trainer.engine
    form = trainer.capture.description if trainer.capture else "step as written"
    form = form.replace("as written", "compiled") if trainer.compilation else form
    device = describe(engine.device, engine.precision, form)[0]
    loader, millions = config.loader, trainer.parameter_count / 1e6
    size = f"B={loader.batch_size}, T={loader.sequence_length}, {millions:.2f} M parameters"
    return f"{config.preset}, {size}; {device}; torch {torch.__version__}"


def _card(trainer: DMCVBTrainer) -> str | None:
    device = trainer.engine.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
