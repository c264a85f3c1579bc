"""The trainer: the public class that opens a run and trains it."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from aime_fast import waiting
from aime_fast.config import TrainConfig
from aime_fast.config.base import configured
from aime_fast.errors import UserError
from aime_fast.reporting.findings.watch import Finding
from aime_fast.training.components import Components
from aime_fast.training.engines.host_group import time_limit
from aime_fast.training.learning_anew import learn_anew
from aime_fast.training.loop import Loop
from aime_fast.training.prefetcher import Prefetcher
from aime_fast.training.reporter import Reporter
from aime_fast.training.run import folder as run_folder
from aime_fast.training.run.device import describe, memory_ended, out_of_memory, room_on
from aime_fast.training.run.going_on import command_to_go_on
from aime_fast.training.run.interruptions import Interruptions
from aime_fast.training.run.watchdog import Watchdog


@dataclass(frozen=True)
class Summary:
    """The result of `fit`."""

    steps: int
    """Optimiser steps of the run so far, including those before it was resumed."""
    epochs: float
    """The same number in epochs."""
    best_psnr: float | None
    """Best validation PSNR in dB; None before the first validation."""
    folder: Path
    """The run's folder."""
    checkpoint: Path | None
    """The newest checkpoint; None if there was nothing to do."""
    skipped: int
    """Steps skipped because of a non-finite gradient."""
    seconds: float
    """Seconds spent training, over all resumptions."""
    signal: int
    """Number of the signal that ended the run early, or 0."""


class DMCVBTrainer(Components):
    """Trains the world model.

        trainer = DMCVBTrainer(preset="debug", steps=50, out="runs/first")
        print(trainer.fit().best_psnr)

    Args:
        config: the whole configuration (default: the preset named in `options`, or `paper`).
        **options: fields of `TrainConfig` to change; a group takes a dict of its own fields, `optim={"lr": 1e-3}`.

    Raises:
        UserError: missing data, sizes that do not fit, a folder that already holds a run, or a checkpoint of another
            model. Nothing has been written then.
    """

    def __init__(self, config: TrainConfig | None = None, **options: object) -> None:
        super().__init__(configured(config, options))

    def fit(self, until: int | None = None) -> Summary:
        """Train to the end of the run, or pause after step `until` as a signal would, with a checkpoint.

        At SIGTERM or SIGINT, finish the current step, write a checkpoint and return; a second signal ends the process.
        Raises `UserError` if gradients stay non-finite, if the last checkpoint cannot be written, or if another run
        uses the folder. If an earlier checkpoint cannot be written, log that and try the next one.
        """
        progress, hosts = self.progress, self.hosts
        with ExitStack() as closing:
            hosts.first(lambda: self._lock(closing))
            closing.callback(self.notes.clear)
            prefetcher = Prefetcher(self.step.fetch, progress.step, self.schedules.total_steps)
            closing.callback(prefetcher.close)
            tasks, total = self.aggregator.tasks, self.schedules.total_steps
            reporter = Reporter(self.folder, self.config, tasks, total, progress, hosts.rank == 0)
            closing.callback(reporter.close)
            closing.callback(self.checkpoints.settle)
            for line in [*self._opening(), *self.notes]:
                reporter.note(line)
            limit, go_on = time_limit().total_seconds(), command_to_go_on(self.folder.path)
            with (
                Interruptions(hosts.rank == 0) as interruptions,
                Watchdog(hosts.rank, hosts.world_size, limit) as watchdog,
            ):
                loop = Loop(self, reporter, prefetcher, interruptions, watchdog)
                try:
                    signal = loop.train(until)
                except RuntimeError as error:
                    if not memory_ended(error):
                        raise
                    raise self._out_of_memory(error, watchdog.phase) from error
            if self.config.logging.stop_on and not signal:
                hosts.first(lambda: self._stop(reporter.stopped_by, go_on))
            if not signal and loop.finished() and self.config.refit_steps and hosts.rank == 0:
                signal = interruptions.received or learn_anew(self, reporter)  # the other ranks do not wait
            if signal:
                reporter.note(f"stopped by signal {signal} after step {progress.step}; saved. Go on with: {go_on}")
        return Summary(
            steps=progress.step,
            epochs=progress.step / self.backend.steps_per_epoch,
            best_psnr=progress.best_psnr,
            folder=self.folder.path,
            checkpoint=self.checkpoints.newest,
            skipped=progress.skipped,
            seconds=progress.seconds,
            signal=signal,
        )

    def _stop(self, finding: Finding | None, go_on: str) -> None:
        """`UserError` for the finding that ended the run; rank 0 raises it for all ranks."""
        if finding:
            raise UserError(
                f"stopped after step {self.progress.step} by --logging.stop-on: {finding}; saved. Go on with: {go_on}"
            )

    def _out_of_memory(self, error: RuntimeError, phase: str) -> UserError:
        self.checkpoints.settle()
        free = room_on(self.engine.device)
        return out_of_memory(error, phase, self.config, self.engine.micro_batch, self.checkpoints.newest, free)

    def _lock(self, closing: ExitStack) -> None:
        """Lock the run's folder until `closing` closes; rank 0 does this for all ranks."""
        closing.callback(run_folder.prepare(self.folder, self.config, self.notes.append).release)

    def _spinning(self) -> list[str]:
        """The line for threads that spin while they wait, because torch was loaded before anybody chose."""
        if self.engine.device.type != "cpu" or torch.get_num_threads() == 1 or waiting.chosen():
            return []
        return [
            "threads spin while they wait, so a busy core slows every step down: set OMP_WAIT_POLICY=PASSIVE before "
            "torch is imported"
        ]

    def _opening(self) -> list[str]:
        total, epoch = self.schedules.total_steps, self.backend.steps_per_epoch
        steps = "1 step" if epoch == 1 else f"{epoch} steps"
        end = f"{total} steps" if total is not None else f"{self.config.minutes:g} minutes"
        step = self.capture.description if self.capture else "step as written"
        return [
            *describe(self.engine.device, self.engine.precision, step),
            *self._spinning(),
            self.backend.description,
            f"{self.parameter_count / 1e6:.2f} M parameters on {self.engine.world_size} x {self.engine.device.type}; "
            f"an epoch has {steps} of {self.config.loader.batch_size} windows; training for {end} into "
            f"{self.folder.path}",
        ]
