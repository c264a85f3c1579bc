"""What a run reports: rows of metrics, findings, the progress, pictures, trackers. Only rank 0 reports."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from aime_fast.config import TrainConfig, to_dict
from aime_fast.config.schema import LoggingConfig
from aime_fast.errors import UserError, unknown_name
from aime_fast.reporting.catalogue import tag
from aime_fast.reporting.findings.history import Facts
from aime_fast.reporting.findings.rules import RULE_NAMES
from aime_fast.reporting.findings.watch import Finding, Watch
from aime_fast.reporting.snapshot import Snapshot
from aime_fast.reporting.trackers.registry import check_trackers
from aime_fast.tasks.task import Task
from aime_fast.training.checkpoint.state import Progress
from aime_fast.training.run.folder import RunFolder

if TYPE_CHECKING:
    from aime_fast.reporting.drawing import Drawing
    from aime_fast.reporting.json_lines import JsonLines
    from aime_fast.reporting.metrics_log import MetricsLog
    from aime_fast.reporting.progress import Progress as ProgressLine
    from aime_fast.reporting.trackers.registry import Trackers

FINDINGS = "findings.jsonl"
ALL = "all"


def check_logging(config: LoggingConfig) -> None:
    """`UserError` for a tracker that does not exist or is not installed, and for an unknown finding."""
    check_trackers(config.tracker)
    for name in config.stop_on:
        if name not in (*RULE_NAMES, ALL):
            raise unknown_name("finding", name, [*RULE_NAMES, ALL])


class Reporter:
    """Writes rows and findings, the progress, pictures and what trackers take on rank 0, and nothing elsewhere."""

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
        self._folder, self._config = folder, config
        self._shown = {label: metric for task in tasks for label, metric in task.shown().items()}
        self._log: MetricsLog | None = None
        self._findings: JsonLines
        self._progress: ProgressLine
        self._trackers: Trackers
        self._drawing: Drawing
        self._watch = Watch(Facts.of(to_dict(config)))
        self._failing = self._undrawn = False
        self.stopped_by: Finding | None = None
        """The first finding of `--logging.stop-on`; the run stops at its next step."""
        if reports:
            self._open(total_steps, done)

    def _open(self, total_steps: int | None, done: Progress) -> None:
        from aime_fast.reporting import drawing, json_lines, metrics_log, progress
        from aime_fast.reporting.trackers.registry import Trackers

        config, path = self._config, self._folder.path
        minutes = config.minutes and max(config.minutes - done.seconds / 60.0, 0.0)
        try:
            log = metrics_log.MetricsLog(path, done.step or None)
            self._findings = json_lines.JsonLines(path / FINDINGS, done.step or None)
        except OSError as error:
            raise UserError(
                f"cannot write metrics to {path} ({error.strerror}); free some space, then continue"
            ) from error
        self._watch.catch_up(metrics_log.read_metrics(path))
        self._progress = progress.Progress(total_steps, minutes, first_step=done.step)
        self._log = log
        self._trackers = Trackers(config.logging.tracker, path, to_dict(config), done.step or None, self.note)
        self._drawing = drawing.Drawing(path)

    def train(self, step: int, values: Mapping[str, float], frames_per_second: float, data_wait: float) -> None:
        """Write a row of training metrics; `data_wait` is the fraction of time spent waiting for data."""
        if self._log:
            from aime_fast.reporting.progress import memory_in_use

            speed = {"frames_per_second": frames_per_second, "data_wait": data_wait, "memory_gb": memory_in_use()[0]}
            self._row(step, "train", {**values, **speed})
            shown = {label: values[metric] for label, metric in self._shown.items()}
            self._progress.update(step, shown, frames_per_second, data_wait)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of validation metrics, and print its PSNR."""
        if self._log:
            self._row(step, "val", values)
            self.note(
                f"validation at step {step}: PSNR {values['psnr']:.2f} dB (perceiver {values['psnr_perceiver']:.2f}), "
                + ", ".join(f"{label} {values[metric]:.4g}" for label, metric in self._shown.items())
            )

    def refitted(self, step: int, values: Mapping[str, float], seen: Snapshot | None) -> None:
        """Write, print and draw the validation of a model whose dynamics learnt anew."""
        if self._log:
            self._row(step, "refit", values)
            # Open-loop figures of one batch are too few to tell; kl_z is of all held-out windows.
            told = f"PSNR {values['psnr']:.2f} dB, kl_z {values['kl_z']:.4g}"
            self.note(f"validation after learning anew: {told}; `aime-fast evaluate` judges its predictions")
            self.pictures(step, seen, "-refitted")

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of values of the first held-out batch."""
        if self._log:
            self._row(step, "look", values)

    def pictures(self, step: int, seen: Snapshot | None, suffix: str = "") -> None:
        """Keep what a validation showed, and draw it as a grid: a file, and what trackers show."""
        if self._log and seen:
            from aime_fast.reporting.figures import save_reconstruction_grid

            path = self._folder.figures / f"step-{step:08d}{suffix}.png"
            try:
                seen.save(self._folder.path)
                save_reconstruction_grid(path, seen, title=f"step {step}")
            except OSError as error:
                self.note(f"step {step}: no picture could be written ({error.strerror}); training continues")
                return
            self._trackers.picture(step, "prediction/reconstructions", path)
            self._trackers.histogram(step, "mixture/usage", seen.usage)
            self._trackers.histogram(step, "mixture/stick_weights", seen.measure[0])
            if self._trackers:
                self._drawing.begin()

    def note(self, line: str) -> None:
        """Print one line."""
        if self._log:
            self._progress.note(line)

    def close(self) -> None:
        """Flush and close."""
        if self._log is None:
            return
        from aime_fast.reporting.drawing import LAST_SECONDS

        self._take_drawn(LAST_SECONDS)
        self._log.close()
        self._findings.close()
        self._trackers.close()
        if self._log.dropped:
            self.note(f"{self._log.dropped} rows of metrics are missing in {self._log.path}")
        self._progress.close()

    def _row(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write a row, and look what it shows."""
        assert self._log is not None
        self._log.write(step, split, values)
        self._tell_failure(step)
        self._trackers.scalars(step, {tag(name, split): float(value) for name, value in values.items()})
        for finding in self._watch.row(step, split, values):
            self._found(finding)
        self._take_drawn()

    def _found(self, finding: Finding) -> None:
        """Say it once, keep it, and end the run if the user asked for that."""
        self._findings.append(asdict(finding))
        self._progress.finding(f"{finding.name} at step {finding.step}: {finding.title}")
        self.note(str(finding))
        self._trackers.text(finding.step, f"findings/{finding.name}", str(finding))
        if self.stopped_by is None and {finding.name, ALL} & set(self._config.logging.stop_on):
            self.stopped_by = finding

    def _take_drawn(self, wait: float = 0.0) -> None:
        """Hand over the pictures that have been drawn, and say once if they can't be."""
        if drawn := self._drawing.finished(wait):
            for name, path in drawn.pictures.items():
                self._trackers.picture(drawn.step, name, path)
        if self._drawing.failure and not self._undrawn:
            self._undrawn = True
            self.note(f"figures for the trackers cannot be drawn ({self._drawing.failure}); training continues")

    def _tell_failure(self, step: int) -> None:
        """Say once when rows begin to be dropped, and once when they no longer are."""
        assert self._log is not None
        failure, told = self._log.failure, self._failing
        self._failing = failure is not None
        if failure and not told:
            self.note(f"step {step}: metrics cannot be written ({failure.strerror}); training continues without them")
        elif told and not failure:
            self.note(f"step {step}: metrics are written again; {self._log.dropped} rows are missing")
