"""Figures of the slots: what they draw, where they look and how that moves."""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from aime_fast.reporting.charts.style import colour, styled
from aime_fast.reporting.figures import overlay, slot_colours
from aime_fast.reporting.snapshot import Snapshot, spread


def masks(seen: Snapshot) -> Figure:
    """Frames above the mask of each slot, for frames spread over the window."""
    shown, slots = spread(len(seen.frames)), seen.masks.shape[1]
    with styled(columns=len(shown), rows=slots + 1, height=0.95 * (slots + 1)) as (figure, axes):
        rows = [seen.frames[shown], *(seen.masks[shown, slot].astype(np.float32) for slot in range(slots))]
        names = ["frame", *(f"slot {slot + 1}" for slot in range(slots))]
        for row, (tiles, name) in enumerate(zip(rows, names, strict=True)):
            for column, tile in enumerate(tiles):
                axis = axes[row * len(shown) + column]
                axis.imshow(tile, cmap="gray", vmin=0, vmax=1 if row else 255)
                axis.set(xticks=[], yticks=[])
                if column == 0:
                    axis.set_ylabel(name, fontsize=7)
                if row == 0:
                    axis.set_title(f"t = {shown[column]}", fontsize=7)
        figure.suptitle("share of each slot in each cell: black 0, white 1", fontsize=9)
        return figure


def attention(seen: Snapshot) -> Figure:
    """Where each slot looks, over the frames."""
    shown = spread(len(seen.frames))
    tinted = overlay(seen.frames[shown], torch.from_numpy(seen.maps[shown]))
    with styled(columns=len(shown), height=1.6) as (figure, axes):
        for axis, tile, frame in zip(axes, tinted, shown, strict=True):
            axis.imshow(tile)
            axis.set(xticks=[], yticks=[])
            axis.set_title(f"t = {frame}", fontsize=7)
        names = [f"slot {slot + 1}" for slot in range(seen.maps.shape[1])]
        tints = [tuple(level / 255 for level in rgb) for rgb in slot_colours(len(names))]
        dots = [Line2D([], [], marker="s", linestyle="", color=tint) for tint in tints]
        figure.legend(dots, names, loc="outside lower center", ncols=min(len(names), 8), fontsize=7)
        return figure


def centres(seen: Snapshot) -> Figure:
    """Horizontal and vertical position of each slot's map over the frames, from -1 to 1."""
    with styled(columns=2, height=2.4) as (figure, axes):
        for axis, values, name in zip(axes, np.moveaxis(seen.centres, -1, 0), ("horizontal", "vertical"), strict=True):
            for slot in range(values.shape[1]):
                axis.plot(values[:, slot], color=colour(slot), label=f"slot {slot + 1}", marker=".", markersize=3)
            axis.set(title=f"{name} centre of attention", xlabel="frame of the window", ylabel="position, -1 to 1")
            axis.set_ylim(-1.05, 1.05)
        axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
        return figure
