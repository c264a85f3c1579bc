"""trackio: tables on this machine, or a Space, as its own settings say (`TRACKIO_DIR`, `TRACKIO_SPACE_ID`, ...)."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from aime_fast.reporting.trackers.tracker import PROJECT, RunIdentity


class Trackio:
    """A run of trackio. It is found again by its name, which therefore ends with the run's id."""

    def __init__(self, run: RunIdentity) -> None:
        import trackio

        self._trackio = trackio
        with redirect_stdout(io.StringIO()):  # it greets, and would be in the way of the progress
            self._run = trackio.init(
                project=PROJECT,
                name=f"{run.name}-{run.id}",
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self.where = f"trackio show --project {PROJECT}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, tag: str, path: Path) -> None:
        """A copy of the file."""
        self._run.log({tag: self._trackio.Image(str(path))}, step=step)

    def histogram(self, step: int, tag: str, shares: np.ndarray) -> None:
        """Bars over 0 to 1, 1 to 2, ..."""
        bars = (np.asarray(shares, dtype=np.float64), np.arange(len(shares) + 1))
        self._run.log({tag: self._trackio.Histogram(np_histogram=bars)}, step=step)

    def text(self, step: int, tag: str, text: str) -> None:
        """An alert."""
        with redirect_stdout(io.StringIO()):  # the progress has printed it
            self._run.alert(title=tag, text=text, step=step)

    def close(self) -> None:
        """Write what is left."""
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()
