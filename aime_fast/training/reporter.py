"""What a run reports: rows of metrics, the progress line, pictures. Only rank 0 reports."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aime_fast.config import TrainConfig
from aime_fast.errors import UserError
from aime_fast.reporting.snapshot import Snapshot
from aime_fast.tasks.task import Task
from aime_fast.training.checkpoint.state import Progress
from aime_fast.training.run.folder import RunFolder

if TYPE_CHECKING:
    from aime_fast.reporting.metrics_log import MetricsLog
    from aime_fast.reporting.progress import Progress as ProgressLine


class Reporter:
    """Writes the metrics log, the progress line and pictures on rank 0, and nothing elsewhere."""

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        tasks: Sequence[Task],
        total_steps: int | None,
        done: Progress,
        reports: bool,
    ) -> None:
        """Rows after `done.step`, written before a resumption, are dropped: the run writes them again."""
        self._folder, self._figures = folder.path, folder.figures
        self._shown = {label: metric for task in tasks for label, metric in task.shown().items()}
        self._log: MetricsLog | None = None
        self._progress: ProgressLine | None = None
        self._failing = False
        if reports:
            from aime_fast.reporting import metrics_log, progress

            minutes = config.minutes and max(config.minutes - done.seconds / 60.0, 0.0)
            try:
                self._log = metrics_log.MetricsLog(folder.path, config.logging.tensorboard, done.step or None)
            except OSError as error:
                raise UserError(
                    f"cannot write metrics to {folder.path} ({error.strerror}); free some space, then continue"
                ) from error
            self._progress = progress.Progress(total_steps, minutes, first_step=done.step)

    def train(self, step: int, values: Mapping[str, float], frames_per_second: float, data_wait: float) -> None:
        """Write a row of training metrics; `data_wait` is the fraction of time spent waiting for data."""
        if self._log and self._progress:
            speed = {"frames_per_second": frames_per_second, "data_wait": data_wait}
            self._log.write(step, "train", {**values, **speed})
            self._tell_failure(step)
            shown = {label: values[metric] for label, metric in self._shown.items()}
            self._progress.update(step, shown, frames_per_second, data_wait)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of validation metrics, and print its PSNR."""
        if self._log:
            self._log.write(step, "val", values)
            self._tell_failure(step)
            self.note(
                f"validation at step {step}: PSNR {values['psnr']:.2f} dB (perceiver {values['psnr_perceiver']:.2f}), "
                + ", ".join(f"{label} {values[metric]:.4g}" for label, metric in self._shown.items())
            )

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of values of the first held-out batch."""
        if self._log:
            self._log.write(step, "look", values)

    def pictures(self, step: int, seen: Snapshot | None) -> None:
        """Keep what a validation showed, and draw it as a grid: a file, and a TensorBoard event."""
        if self._log and seen:
            from aime_fast.reporting.figures import save_reconstruction_grid

            path = self._figures / f"step-{step:08d}.png"
            try:
                seen.save(self._folder)
                save_reconstruction_grid(path, seen, title=f"step {step}")
            except OSError as error:
                self.note(f"step {step}: no picture could be written ({error.strerror}); training continues")
            else:
                self._log.picture(step, "reconstructions", path)

    def note(self, line: str) -> None:
        """Print one line."""
        if self._progress:
            self._progress.note(line)

    def close(self) -> None:
        """Flush and close."""
        if self._log and self._progress:
            self._log.close()
            if self._log.dropped:
                self.note(f"{self._log.dropped} rows of metrics are missing in {self._log.path}")
            self._progress.close()

    def _tell_failure(self, step: int) -> None:
        """Say once when rows begin to be dropped, and once when they no longer are."""
        assert self._log is not None
        failure, told = self._log.failure, self._failing
        self._failing = failure is not None
        if failure and not told:
            self.note(f"step {step}: metrics cannot be written ({failure.strerror}); training continues without them")
        elif told and not failure:
            self.note(f"step {step}: metrics are written again; {self._log.dropped} rows are missing")
