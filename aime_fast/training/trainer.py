"""The trainer: opens data, model and engine, and runs the loop until the steps, the epochs or the time are up."""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from aime_fast.balancing.balancer import Balancer
from aime_fast.config import TrainConfig
from aime_fast.config.options import configured, with_data_sizes
from aime_fast.config.schema import DEFAULT_IMAGE_SIZE
from aime_fast.data.backends import open_backend
from aime_fast.errors import UserError
from aime_fast.kernel_mode import check_kernel_mode
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.tasks.registry import check_data, make_tasks
from aime_fast.training.checkpoint.checkpoint import Checkpoints, read_state
from aime_fast.training.checkpoint.settings import check_settings
from aime_fast.training.checkpoint.state import Progress, RunState, seed_everything
from aime_fast.training.compile.compilation import Compilation, cache_folder, uncompiled, wanted
from aime_fast.training.compile.graph_capture import CapturedStep
from aime_fast.training.engines.host_group import HostGroup, time_limit
from aime_fast.training.engines.open_engine import open_engine
from aime_fast.training.meters import Interval
from aime_fast.training.prefetcher import Prefetcher
from aime_fast.training.reporter import Reporter
from aime_fast.training.run import folder as run_folder
from aime_fast.training.run.interruptions import Interruptions
from aime_fast.training.run.lock import RunLock
from aime_fast.training.run.watchdog import Watchdog
from aime_fast.training.schedules import Schedules, total_steps
from aime_fast.training.step import TrainingStep
from aime_fast.training.validation import validate


@dataclass(frozen=True)
class Summary:
    """What a call of `fit` came to."""

    steps: int
    """Optimiser steps of the run so far, those before a resumption included."""
    epochs: float
    """The same in epochs."""
    best_psnr: float | None
    """Best validation PSNR in dB; none before the first validation."""
    folder: Path
    """The run's folder."""
    checkpoint: Path | None
    """The newest checkpoint; none where there was nothing to do."""
    skipped: int
    """Steps skipped for a non-finite gradient."""
    seconds: float
    """Time spent, over all resumptions."""
    signal: int
    """Number of the signal that ended the run early; 0 where none did."""


class DMCVBTrainer:
    """Trains the world model.

        trainer = DMCVBTrainer(preset="debug", steps=50, out="runs/first")
        print(trainer.fit().best_psnr)

    Args:
        config: the whole configuration; none starts from the preset named in `options` (default `paper`).
        **options: fields of `TrainConfig` to change; a group takes a dict of its own fields, `optim={"lr": 1e-3}`.

    Raises:
        UserError: missing data, sizes that do not fit, a folder that holds a run already, a checkpoint of another
            model. Nothing has been written then.
    """

    def __init__(self, config: TrainConfig | None = None, **options: Any) -> None:
        config = configured(config, options)
        check_kernel_mode()
        if config.threads:
            torch.set_num_threads(config.threads)
        self._notes: list[str] = []
        tasks = make_tasks(config.tasks)
        self.backend, self.validation_backend = (
            open_backend(config.backend, config.data, config.loader, split, config.seed, config.on_bad_sample)
            for split in ("train", "val")
        )
        sizes = self.backend.action_dim, getattr(self.backend, "image_size", DEFAULT_IMAGE_SIZE)
        self.config = config = with_data_sizes(config, *sizes, config.data or "the sample")
        check_data(tasks, getattr(self.backend, "has_rewards", True), config.data or "the sample")
        self.total_steps = total_steps(config, self.backend.steps_per_epoch)
        self.schedules = Schedules.from_config(config, self.backend.steps_per_epoch, self.total_steps)

        seed_everything(config.seed)
        model = DPGMMVariationalRecurrentAutoencoder.from_config(config.model)
        model.add_heads(tasks)
        model.mean_frame.copy_(self.backend.mean_frame())
        self._parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.engine = open_engine(model, config)
        self.aggregator = LossAggregator(config.losses, tasks)
        self.balancer = Balancer(config.balancing, self.engine.layout, self.engine.parameter_names, config.tasks)
        self.step: TrainingStep | CapturedStep = TrainingStep(
            self.engine, self.balancer, self.aggregator, self.backend, config
        )
        self.progress = Progress()
        self.state = RunState(config, self.engine, self.balancer, self.progress)
        self._held: RunLock | None = None
        self._closing = ExitStack()
        self._closing.callback(self.engine.close)
        with ExitStack() as undo:
            undo.callback(self.close)  # a mistake found from here on leaves no process group behind
            self.peers = HostGroup(self.engine.rank, self.engine.world_size)
            self._compilation = self._compiled()
            if config.cuda_graph:
                self.step = CapturedStep(self.step)
            self.folder = self.peers.first(lambda: run_folder.choose(config, self._notes.append))
            self.checkpoints = Checkpoints(self.folder.checkpoints, self.peers, config.keep_checkpoints)
            self._closing.callback(self.checkpoints.close)
            if self.folder.checkpoint is not None:
                self._resume(self.folder.checkpoint)
            undo.pop_all()

    def _compiled(self) -> Compilation | None:
        """Compile the step where that is wanted; compiling itself waits for the first step."""
        if not wanted(self.config.compile, self.engine.device):
            return None
        compilation = Compilation(self.engine.module, self.aggregator, self.balancer, self.engine.device)
        self._closing.callback(compilation.close)
        self._notes.append(f"compiling the step first: minutes, or seconds where {cache_folder()} has it")
        return compilation

    def _resume(self, checkpoint: Path) -> None:
        saved, now = read_state(checkpoint)["config"], self.state.shared()["config"]
        home = str(checkpoint.parent.parent)
        changed = self.peers.first(lambda: check_settings(saved, now, self.config.override, home))
        if changed:
            self._notes.append(f"settings changed since the checkpoint: {changed}")
        self.checkpoints.load(checkpoint, self.state)

    def fit(self, until: int | None = None) -> Summary:
        """Train to the end of the run, or pause after step `until` as a signal would, with a checkpoint.

        SIGTERM and SIGINT let the current step finish, write a checkpoint and return; a second one ends the process.
        Raises `UserError` where gradients stay non-finite, the last checkpoint cannot be written, or another run is
        writing to the folder. A checkpoint on the way that cannot be written is told, and the next one tried.
        """
        with ExitStack() as closing:
            self._lock()
            closing.callback(self._unlock)
            closing.callback(self._notes.clear)
            feed = Prefetcher(self.step.fetch, self.progress.step, self.total_steps)
            closing.callback(feed.close)
            reporter = Reporter(
                self.folder, self.config, self.aggregator.tasks, self.total_steps, self.progress, self.peers.rank == 0
            )
            closing.callback(reporter.close)
            closing.callback(self.checkpoints.settle)
            for line in [*self._opening(), *self._notes]:
                reporter.note(line)
            limit = time_limit().total_seconds()
            with Interruptions() as interruptions, Watchdog(self.peers.rank, self.peers.world_size, limit) as watchdog:
                signal = self._train(reporter, feed, interruptions, watchdog, until)
            if signal:
                reporter.note(f"stopped by signal {signal} after step {self.progress.step}; saved")
            return self._summary(signal)

    def _lock(self) -> None:
        """Rank 0 holds the run's folder for all."""

        def take() -> None:
            self._held = run_folder.prepare(self.folder, self.config, self._notes.append)

        self.peers.first(take)

    def _unlock(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    def close(self) -> None:
        """End the thread that writes checkpoints, and leave the process group, where the engine opened one."""
        self._closing.close()

    def _opening(self) -> list[str]:
        engine, epoch = self.engine, self.backend.steps_per_epoch
        end = f"{self.total_steps} steps" if self.total_steps is not None else f"{self.config.minutes:g} minutes"
        return [
            self.backend.description,
            f"{self._parameters / 1e6:.2f} M parameters on {engine.world_size} x {engine.device.type}; an epoch has "
            f"{epoch} steps of {self.config.loader.batch_size} windows; training for {end} into {self.folder.path}",
        ]

    def _train(
        self, reporter: Reporter, feed: Prefetcher, interruptions: Interruptions, watchdog: Watchdog, until: int | None
    ) -> int:
        """The loop; the signal that ended it before its time, or 0.

        Every rank takes every decision in it from values that all ranks have.
        """
        progress = self.progress
        interval = Interval(self.engine.device, progress.skipped_in_a_row)
        earlier, started = progress.seconds, time.monotonic()
        stop, signal = self._finished() or progress.step == until, 0
        if self._compilation:
            self._compilation.compiled_one = lambda: watchdog.beat("compiling")
        while not stop:
            watchdog.beat(f"step {progress.step + 1}")
            with interval:
                decide = self.peers.agree(lambda: (earlier + time.monotonic() - started, interruptions.received))
                lr, beta = self.schedules.lr(progress.step, self._time_fraction()), self.schedules.beta(progress.step)
                self.engine.set_lr(lr)
                result = self.step(feed.take(progress.step), beta)
                interval.add(result.values, result.finite)
                progress.step += 1
                progress.seconds, signal = decide()
            if self._compilation and (line := self._compilation.news()):
                reporter.note(f"step {progress.step}: {line}")
            complete = self._finished()
            stop = complete or bool(signal) or progress.step == until
            validating = complete or progress.step % self.backend.steps_per_epoch == 0
            saving = stop or progress.step % self.config.checkpoint_every == 0
            if stop or validating or saving or progress.step % self.config.logging.log_every == 0:
                self._log(reporter, interval, feed, lr, beta)
            best = validating and self._validate(reporter, beta, watchdog)
            if saving or best:
                self._save(best)
            if stop:
                watchdog.beat("the last checkpoint")
                self.checkpoints.finish()
            elif trouble := self.checkpoints.news():
                reporter.note(f"{trouble}; training goes on and the next checkpoint is tried")
            every = self.config.logging.figures_every
            if every and not validating and progress.step % every == 0:
                self._picture(reporter, beta)
        return 0 if self._finished() else signal

    def _finished(self) -> bool:
        """Whether the steps, the epochs or the time are up."""
        return self.progress.step == self.total_steps or self._time_fraction() >= 1.0

    def _time_fraction(self) -> float:
        return self.progress.seconds / (60.0 * self.config.minutes) if self.config.minutes else 0.0

    def _log(self, reporter: Reporter, interval: Interval, feed: Prefetcher, lr: float, beta: float) -> None:
        """Read the interval's values, write a row, and stop the run where nothing was finite for too long."""
        progress, loader = self.progress, self.config.loader
        with record_function("log"):
            with interval:
                reading, (in_a_row, longest, skipped) = interval.read(self.peers.gather)
            progress.skipped += skipped
            progress.skipped_in_a_row = in_a_row
            frames = interval.steps * loader.batch_size * loader.sequence_length
            epoch = progress.step / self.backend.steps_per_epoch
            values = {**reading.means, "lr": lr, "beta": beta, "epoch": epoch, "skipped_steps": float(progress.skipped)}
            reporter.train(progress.step, values, frames / interval.seconds, feed.waited / interval.seconds)
            feed.waited = 0.0
            interval.restart()
        names = ", ".join(reading.nonfinite)
        if skipped:
            reporter.note(f"step {progress.step}: skipped {skipped} step(s), not finite: {names}")
        if longest >= self.config.optim.max_skipped_steps:
            raise UserError(
                f"stopped at step {progress.step}: {longest} steps in a row had a non-finite gradient, from {names}; "
                f"lower optim.lr (now {self.config.optim.lr:g}) or look at the data, then --resume {self.folder.path}"
            )

    def _validate(self, reporter: Reporter, beta: float, watchdog: Watchdog) -> bool:
        """Validate on every held-out window, T frames apart; whether it is the best so far."""
        progress = self.progress
        with record_function("validation"), self.engine.whole(), uncompiled():
            batches = self.validation_backend.evaluation_windows(self.config.loader.sequence_length)
            windows = watchdog.beating(batches, "a validation batch")
            values, pictures = validate(
                self.engine.module, self.aggregator, windows, beta, self.config.seed, self.peers
            )
        reporter.validation(progress.step, values)
        reporter.pictures(progress.step, pictures)
        if not values["psnr"] > (-math.inf if progress.best_psnr is None else progress.best_psnr):
            return False
        progress.best_psnr, progress.best_step = values["psnr"], progress.step
        return True

    def _picture(self, reporter: Reporter, beta: float) -> None:
        """Draw the first held-out windows, without a validation."""
        first = islice(self.validation_backend.evaluation_windows(self.config.loader.sequence_length), 1)
        with self.engine.whole(), uncompiled():
            _, pictures = validate(self.engine.module, self.aggregator, first, beta, self.config.seed, self.peers)
        reporter.pictures(self.progress.step, pictures)

    def _save(self, best: bool) -> None:
        with record_function("checkpoint"):
            self.checkpoints.save(self.state, best)

    def _summary(self, signal: int) -> Summary:
        progress = self.progress
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
