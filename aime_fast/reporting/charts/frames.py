"""The figure of a validation's window: its frames, what the model rebuilds of them, and what it predicts."""

import numpy as np
from matplotlib.figure import Figure

from aime_fast.reporting.charts.style import styled
from aime_fast.reporting.snapshot import Snapshot, spread


def reconstructions(seen: Snapshot) -> Figure:
    """Rows of frames spread over the window; frames before the prediction begins are left out of its row."""
    shown = spread(len(seen.frames))
    first = len(seen.frames) - len(seen.imagined)
    rows = {
        "truth": seen.frames,
        "rebuilt": seen.reconstructions,
        "from tokens": seen.token_reconstructions,
        "predicted": np.concatenate([np.full_like(seen.frames[:first], 255), seen.imagined]),
    }
    with styled(columns=len(shown), rows=len(rows), height=0.95 * len(rows)) as (figure, axes):
        for row, (name, pictures) in enumerate(rows.items()):
            for column, frame in enumerate(shown):
                axis = axes[row * len(shown) + column]
                axis.imshow(pictures[frame], interpolation="none")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if column == 0:
                    axis.set_ylabel(name, fontsize=7)
                if row == 0:
                    axis.set_title(f"t = {frame}", fontsize=7)
        figure.suptitle(f"a held-out window at step {int(seen.step)}", fontsize=9)
        return figure
