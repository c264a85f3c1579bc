"""The training loop."""

import math
import time
from collections.abc import Iterable

from aime_fast.data.batch import Batch
from aime_fast.errors import UserError
from aime_fast.profiling.phases import phase
from aime_fast.reporting.snapshot import Snapshot
from aime_fast.training.compile.compilation import uncompiled
from aime_fast.training.components import Components
from aime_fast.training.meters import Interval
from aime_fast.training.prefetcher import Prefetcher
from aime_fast.training.reporter import Reporter
from aime_fast.training.run.interruptions import Interruptions
from aime_fast.training.run.watchdog import Watchdog
from aime_fast.training.step import Inputs
from aime_fast.training.validation import validate


class Loop:
    """Trains a run until its steps, epochs or time are up, a signal arrives, or it pauses.

    Every rank takes the same decisions: they depend only on values that all ranks share.
    """

    def __init__(
        self,
        run: Components,
        reporter: Reporter,
        prefetcher: Prefetcher[Inputs],
        interruptions: Interruptions,
        watchdog: Watchdog,
    ) -> None:
        self.run, self.reporter, self.prefetcher = run, reporter, prefetcher
        self.interruptions, self.watchdog = interruptions, watchdog
        self.interval = Interval(run.engine.device, run.progress.skipped_in_a_row)
        self._earlier, self._started = run.progress.seconds, time.monotonic()
        if run.compilation:
            run.compilation.on_graph = lambda: watchdog.beat("compiling")
            run.compilation.tell = reporter.note

    def train(self, until: int | None) -> int:
        """Train, and pause after step `until` if it is given; return the signal that ended the run early, or 0."""
        run, config, progress, interval = self.run, self.run.config, self.run.progress, self.interval
        stop, signal, found = self.finished() or self._paused(until), 0, False
        if stop:
            self.reporter.note(
                f"the run is at step {progress.step} already: no step is left; --override and a larger --steps go on"
            )
        while not stop:
            self.watchdog.beat(f"step {progress.step + 1}")
            with interval:
                decide = run.hosts.agree(self._own_state)
                lr, beta = run.schedules.lr(progress.step, self._time_fraction()), run.schedules.beta(progress.step)
                run.engine.set_lr(lr)
                result = run.step(self.prefetcher.take(), beta)
                interval.add(result.values, result.finite)
                progress.step += 1
                progress.seconds, signal, found = decide()
            finished = self.finished()
            stop = finished or found or bool(signal) or self._paused(until)
            validating = finished or self._every(run.backend.steps_per_epoch)
            saving = stop or self._every(config.checkpoint_every)
            for part in (run.compilation, run.capture):
                if part and (message := part.take_message()):
                    self.reporter.note(f"step {progress.step}: {message}")
            if stop or validating or saving or self._every(config.logging.log_every):
                self._log(lr, beta)
            best = validating and self._validate(beta)
            if saving or best:
                with phase("checkpoint"):
                    run.checkpoints.save(run.state, best)
            if stop:
                self.watchdog.beat("the last checkpoint")
                run.checkpoints.finish()
            elif failure := run.checkpoints.take_failure():
                self.reporter.note(f"{failure}; training continues and will try the next checkpoint")
            if not validating and self._every(config.logging.figures_every):
                self._look(beta)
        return 0 if self.finished() else signal

    def _every(self, steps: int) -> bool:
        """Whether the step just done is a multiple of `steps`; never if `steps` is 0."""
        return steps > 0 and self.run.progress.step % steps == 0

    def _own_state(self) -> tuple[float, int, bool]:
        """What this rank knows: seconds of training, a signal, and a finding that ends the run (rank 0)."""
        seconds = self._earlier + time.monotonic() - self._started
        return seconds, self.interruptions.received, self.reporter.stopped_by is not None

    def finished(self) -> bool:
        """Whether the steps, the epochs or the time are up."""
        total = self.run.schedules.total_steps
        # A resumed run may be beyond a limit that was lowered.
        return (total is not None and self.run.progress.step >= total) or self._time_fraction() >= 1.0

    def _paused(self, until: int | None) -> bool:
        return until is not None and self.run.progress.step >= until

    def _time_fraction(self) -> float:
        minutes = self.run.config.minutes
        return self.run.progress.seconds / (60.0 * minutes) if minutes else 0.0

    def _log(self, lr: float, beta: float) -> None:
        """Read the interval's values, log them, and stop the run after too many non-finite steps in a row."""
        run, progress, interval, loader = self.run, self.run.progress, self.interval, self.run.config.loader
        with phase("log"):
            with interval:
                reading, (in_a_row, longest, skipped) = interval.read(run.hosts.gather)
            progress.skipped += skipped
            progress.skipped_in_a_row = in_a_row
            frames = interval.steps * loader.batch_size * loader.sequence_length
            epoch = progress.step / run.backend.steps_per_epoch
            values = {
                **reading.means,
                "lr": lr,
                "beta": beta,
                "epoch": epoch,
                "step_seconds": interval.seconds / max(interval.steps, 1),
                "skipped_steps": float(progress.skipped),
            }
            waited = self.prefetcher.waited / interval.seconds
            self.reporter.train(progress.step, values, frames / interval.seconds, waited)
            self.prefetcher.waited = 0.0
            interval.restart()
        names = ", ".join(reading.nonfinite)
        if skipped:
            self.reporter.note(f"step {progress.step}: skipped {skipped} step(s), not finite: {names}")
        if longest >= run.config.optim.max_skipped_steps:
            raise UserError(
                f"stopped at step {progress.step}: {longest} steps in a row had a non-finite gradient, from {names}; "
                f"lower optim.lr (now {run.config.optim.lr:g}) or check the data, then --resume {run.folder.path}"
            )

    def _validate(self, beta: float) -> bool:
        """Validate on all held-out windows, if there are any; return whether the PSNR is the best so far."""
        progress, held_out = self.run.progress, self.run.validation_backend
        if held_out is None:
            return False
        with phase("validation"):
            windows = held_out.evaluation_windows(self.run.config.loader.sequence_length)
            values, seen = self._evaluated(self.watchdog.beating(windows, "validation"), beta)
        self.reporter.validation(progress.step, values)
        self.reporter.pictures(progress.step, seen)
        if not values["psnr"] > (-math.inf if progress.best_psnr is None else progress.best_psnr):
            return False
        progress.best_psnr, progress.best_step = values["psnr"], progress.step
        return True

    def _look(self, beta: float) -> None:
        """Look at the first batch of held-out windows, if there are any: figures of the parts, and a picture."""
        if self.run.validation_backend is None:
            return
        windows = self.run.validation_backend.evaluation_windows(self.run.config.loader.sequence_length)
        values, seen = self._evaluated([next(windows)], beta)
        self.reporter.look(self.run.progress.step, values)
        self.reporter.pictures(self.run.progress.step, seen)

    def _evaluated(self, windows: Iterable[Batch], beta: float) -> tuple[dict[str, float], Snapshot | None]:
        run = self.run
        self.watchdog.beat("validation")
        with run.engine.whole(), uncompiled():
            return validate(run.model, run.aggregator, windows, beta, run.config.seed, run.hosts, run.progress.step)
