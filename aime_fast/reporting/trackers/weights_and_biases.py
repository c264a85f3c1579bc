"""Weights & Biases, online or offline as its own settings say (`WANDB_MODE=offline`, `WANDB_PROJECT`, ...)."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aime_fast.reporting.trackers.tracker import PROJECT, RunIdentity

STEP = "step"
"""The axis of all charts. W&B's own step cannot go back, as it does where a run resumes from an earlier checkpoint."""
FINISH_SECONDS = 300.0
"""How long the end of a run waits for a network that is down; the values stay in the run's folder."""


class WeightsAndBiases:
    """A run of W&B; its files are in `RUN/wandb`, unless `WANDB_DIR` names another folder."""

    def __init__(self, run: RunIdentity) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True, finish_timeout=FINISH_SECONDS),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        folder = os.path.dirname(self._run.dir)
        self.where = f"offline, `wandb sync {folder}` sends it" if self._run.offline else str(self._run.url)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row of the history."""
        self._run.log({STEP: step, **values})

    def picture(self, step: int, tag: str, path: Path) -> None:
        """A copy of the file."""
        self._run.log({STEP: step, tag: self._wandb.Image(str(path))})

    def histogram(self, step: int, tag: str, shares: np.ndarray) -> None:
        """Bars over 0 to 1, 1 to 2, ..."""
        bars = (np.asarray(shares, dtype=np.float64), np.arange(len(shares) + 1))
        self._run.log({STEP: step, tag: self._wandb.Histogram(np_histogram=bars)})

    def text(self, step: int, tag: str, text: str) -> None:
        """An alert, which W&B can send by mail, and a line of the run's summary."""
        self._run.summary[tag] = text
        self._run.alert(title=tag, text=text)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
