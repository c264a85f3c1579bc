"""What a run tells: rows of metrics, the progress line, pictures. Only rank 0 speaks."""

from collections.abc import Mapping
from typing import Any

from aime_fast.config import TrainConfig
from aime_fast.training.checkpoint.state import Progress
from aime_fast.training.run.folder import RunFolder
from aime_fast.training.validation import Pictures

SHOWN = {"elbo": "total_elbo", "perceiver": "perceiver_loss", "predictive": "total_predictive", "kl_z": "kl_z"}
"""What the progress line shows, and which metrics these are."""


class Reporter:
    """Metrics log, progress and figures on rank 0; silence elsewhere."""

    def __init__(
        self, folder: RunFolder, config: TrainConfig, total_steps: int | None, done: Progress, speaks: bool
    ) -> None:
        """Rows of steps after `done.step`, from before a resumption, are dropped: they will be written again."""
        self._figures = folder.figures
        self._log: Any = None
        self._progress: Any = None
        if speaks:
            from aime_fast.reporting import metrics_log, progress

            minutes = config.minutes and max(config.minutes - done.seconds / 60.0, 0.0)
            self._log = metrics_log.MetricsLog(folder.path, config.watching.tensorboard, resume_step=done.step or None)
            self._progress = progress.Progress(total_steps, minutes, first_step=done.step)

    def train(self, step: int, values: Mapping[str, float], frames_per_second: float, data_wait: float) -> None:
        """A row of training metrics; `data_wait` is the fraction of the time spent waiting for data."""
        if self._log:
            speed = {"frames_per_second": frames_per_second, "data_wait": data_wait}
            self._log.write(step, "train", {**values, **speed})
            shown = {short: values[name] for short, name in SHOWN.items()}
            self._progress.update(step, shown, frames_per_second, data_wait)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """A row of validation metrics, and its PSNR on the screen."""
        if self._log:
            self._log.write(step, "val", values)
            self.note(
                f"validation at step {step}: PSNR {values['psnr']:.2f} dB (perceiver {values['psnr_perceiver']:.2f}), "
                + ", ".join(f"{short} {values[name]:.4g}" for short, name in SHOWN.items())
            )

    def pictures(self, step: int, pictures: Pictures | None) -> None:
        """A grid of originals, reconstructions and attention maps, as a file and among the events."""
        if not self._log or pictures is None:
            return
        from aime_fast.reporting.figures import save_reconstruction_grid

        path = self._figures / f"step-{step:08d}.png"
        save_reconstruction_grid(
            path,
            pictures.originals,
            pictures.reconstructions,
            pictures.perceiver_reconstructions,
            pictures.attention_maps,
            f"step {step}",
        )
        self._log.picture(step, "reconstructions", path)

    def note(self, line: str) -> None:
        """One line on the screen."""
        if self._progress:
            self._progress.note(line)

    def close(self) -> None:
        """Flush and close."""
        if self._log:
            self._log.close()
            self._progress.close()
