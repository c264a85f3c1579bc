"""Draws the pictures of a run's snapshot: `python -m aime_fast.reporting.charts RUN FOLDER`.

Prints `{"step": 200, "pictures": {tag: file}}`. It gives way to every other process, so that training keeps its cores.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from aime_fast.reporting.charts import mixture
from aime_fast.reporting.charts.open_loop import open_loop
from aime_fast.reporting.snapshot import Snapshot, read_snapshot

PICTURES: dict[str, Callable[[Snapshot], Figure]] = {
    "prediction/open_loop": open_loop,
    "mixture/components": mixture.usage,
    "mixture/over_time": mixture.over_time,
    "mixture/sticks": mixture.sticks,
    "latent/plane": mixture.latents,
    "codebook/codes": mixture.codes,
}
"""The figures of a snapshot by their tags in trackers."""


def draw(run: Path, folder: Path) -> dict[str, object]:
    """Write the pictures as PNG files into `folder`, which is made; the step of the snapshot, and the files by tag."""
    seen = read_snapshot(run)
    if seen is None:
        return {"step": 0, "pictures": {}}
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for tag, chart in PICTURES.items():
        path = folder / f"{tag.replace('/', '-')}.png"
        draft = path.with_suffix(".unfinished.png")
        chart(seen).savefig(draft, dpi=110)
        os.replace(draft, path)
        files[tag] = str(path)
    return {"step": int(seen.step), "pictures": files}


if __name__ == "__main__":
    os.nice(19)
    print(json.dumps(draw(Path(sys.argv[1]), Path(sys.argv[2]))))
