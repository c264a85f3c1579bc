"""The picture of an open-loop prediction: what came, what was predicted, and where they differ."""

import numpy as np
from matplotlib.figure import Figure

from aime_fast.reporting.charts.style import WIDTH, styled
from aime_fast.reporting.snapshot import Snapshot, spread

PEAK = 255.0


def open_loop(seen: Snapshot) -> Figure:
    """Rows truth, predicted and error (black 0, white half the range), with PSNR above; a note where nothing is."""
    count = len(seen.imagined)
    if count == 0:
        with styled(height=1.0) as (figure, (axis,)):
            axis.text(0.5, 0.5, "windows are too short for a prediction", ha="center", transform=axis.transAxes)
            axis.axis("off")
            return figure
    context, shown = len(seen.frames) - count, spread(count)
    truth, predicted = (frames[shown].astype(np.float64) / PEAK for frames in (seen.frames[context:], seen.imagined))
    error = truth - predicted
    psnr = -10 * np.log10(np.maximum((error**2).mean((1, 2, 3)), 1e-10))
    rows = {"truth": truth, "predicted": predicted, "error": np.abs(error).mean(-1)}
    tile = WIDTH / max(len(shown), 4)
    with styled(columns=len(shown), rows=3, height=3 * tile + 0.6) as (figure, axes):
        for place, axis in enumerate(axes):
            row, column = divmod(place, len(shown))
            name, tiles = list(rows.items())[row]
            axis.imshow(tiles[column], cmap="gray", vmin=0, vmax=0.5, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(name, fontsize=7)
            if row == 0:
                axis.set_title(f"{shown[column] + 1} ahead\n{psnr[column]:.1f} dB", fontsize=7)
        figure.suptitle(f"predicted from {context} frames and the recorded actions", fontsize=9)
        return figure
