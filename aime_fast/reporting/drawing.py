"""Pictures of a snapshot, drawn in a process of its own so that no training step waits for them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LAST_SECONDS = 60.0
"""How long the end of a run waits for its last pictures."""
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Drawn:
    """Pictures that are ready."""

    step: int
    pictures: dict[str, Path]
    """PNG files by tag."""


class Drawing:
    """Draws the newest snapshot of a run into `figures/latest`, one at a time: one that comes meanwhile is left out.

    So slow drawing on a busy machine costs pictures, and no steps.
    """

    def __init__(self, folder: Path) -> None:
        self._run, self._out = folder, folder / "figures" / "latest"
        self._process: subprocess.Popen[str] | None = None
        self.failure: str | None = None
        """Why the latest pictures are missing."""

    def begin(self) -> None:
        """Start to draw the snapshot in the run's folder, unless another is being drawn."""
        if self._process is not None:
            return
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "aime_fast.reporting.charts", str(self._run), str(self._out)],
                env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C ends the run, which then waits for its pictures
            )
        except OSError as error:
            self.failure = str(error)

    def finished(self, wait: float = 0.0) -> Drawn | None:
        """The pictures, once they are drawn; waits for them at most `wait` seconds."""
        process = self._process
        if process is None or (not wait and process.poll() is None):
            return None
        try:
            printed, said = process.communicate(timeout=wait or None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            printed, said = "", f"not drawn after {wait:.0f} s"
        self._process = None
        if process.returncode:
            self.failure = (said.strip().splitlines() or ["its process was ended"])[-1]
            return None
        result = json.loads(printed)
        return Drawn(result["step"], {tag: Path(file) for tag, file in result["pictures"].items()})
