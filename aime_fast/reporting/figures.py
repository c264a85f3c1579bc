"""Picture grids: frames, reconstructions and attention maps."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from aime_fast.reporting.snapshot import Snapshot, spread

Colour = tuple[int, int, int]
ZOOM = 2
"""Screen pixels per frame pixel, in each direction."""
LABELS, GAP, PAD, MARK = 112, 4, 14, 17
"""Width of row labels, space between tiles, margin, and size of a slot's mark; screen pixels."""
INK, FAINT = (30, 34, 42), (110, 116, 128)
"""Text colours."""
SLOT_COLOURS = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (241, 196, 15), (142, 68, 173), (243, 155, 127))
"""Colour of each slot, RGB in 0..255; repeated after the last one."""


def save_reconstruction_grid(path: str | Path, seen: Snapshot, title: str) -> None:
    """Write a PNG of the window of a snapshot: original, reconstructions, prediction, where slots look, their masks.

    The file is written atomically; its folder is made if missing. `title` is one line above the rows. Frames before the
    prediction begins are black in its row.
    """
    shown = spread(len(seen.frames))
    frames = seen.frames[shown]
    unseen = np.zeros((len(seen.frames) - len(seen.imagined), *seen.frames.shape[1:]), np.uint8)
    rows = {
        "original": frames,
        "reconstruction": seen.reconstructions[shown],
        "perceiver": seen.token_reconstructions[shown],
        "predicted": np.concatenate([unseen, seen.imagined])[shown],
        "attention": overlay(frames, torch.from_numpy(seen.maps[shown])),
        "masks": overlay(frames, torch.from_numpy(seen.masks[shown])),
    }
    marks = slot_colours(seen.maps.shape[1])
    save_rows(path, rows, title, [f"t = {t}" for t in shown], marks={"attention": marks, "masks": marks})


def overlay(frames: np.ndarray, maps: Tensor) -> np.ndarray:
    """Frames uint8 [n, H, W, 3], dimmed, with each cell in the colours of the slots that attend to it.

    Each map is scaled by its own peak, so a slot spread over the frame is as visible as a sharp one.
    """
    size = frames.shape[1:3]
    shares = F.interpolate(maps.float(), size=size, mode="nearest").movedim(1, -1).cpu().numpy()
    strength = shares / np.maximum(shares.max((1, 2), keepdims=True), 1e-12)
    colours = np.array(slot_colours(maps.shape[1]), np.float32)
    mixed = strength @ colours / np.maximum(strength.sum(-1, keepdims=True), 1e-12)
    cover = 0.6 * strength.max(-1, keepdims=True)
    return ((1 - cover) * frames + cover * mixed).astype(np.uint8)


def slot_colours(slots: int) -> list[Colour]:
    """The colour of each of `slots` slots."""
    return [SLOT_COLOURS[slot % len(SLOT_COLOURS)] for slot in range(slots)]


def save_rows(
    path: str | Path,
    rows: dict[str, np.ndarray],
    title: str,
    names: list[str],
    marks: Mapping[str, Sequence[Colour]] = MappingProxyType({}),
) -> None:
    """Write labelled rows of tiles uint8 [n, H, W, 3] as one PNG, atomically.

    `names` label the columns. `marks` are coloured squares below a row's label, numbered from 1.
    """
    count, height, width = next(iter(rows.values())).shape[:3]
    tile = (width * ZOOM, height * ZOOM)
    left, top = PAD + LABELS, PAD + 50
    size = (left + count * (tile[0] + GAP) - GAP + PAD, top + len(rows) * (tile[1] + GAP) - GAP + PAD)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    small, middle, large = (ImageFont.load_default(points) for points in (11, 14, 17))
    draw.text((PAD, PAD), title, fill=INK, font=large)
    for column, name in enumerate(names):
        x = left + column * (tile[0] + GAP) + tile[0] / 2
        draw.text((x, top - 6), name, fill=FAINT, font=middle, anchor="ms")
    for row, (label, tiles) in enumerate(rows.items()):
        y = top + row * (tile[1] + GAP)
        colours = marks.get(label, ())
        draw.text((left - 10, y + tile[1] / 2 - (10 if colours else 0)), label, fill=INK, font=middle, anchor="rm")
        pitch = min(MARK, (LABELS - 10) / max(len(colours), 1))
        for slot, colour in enumerate(colours):
            x, below = left - 10 - pitch * (len(colours) - slot), y + tile[1] / 2 + 4
            draw.rectangle((x + 2, below, x + pitch - 1, below + MARK - 3), fill=colour)
            draw.text((x + pitch / 2 + 1, below + MARK / 2 - 1), str(slot + 1), fill="white", font=small, anchor="mm")
        for column, image in enumerate(tiles):
            enlarged = Image.fromarray(image).resize(tile, Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + column * (tile[0] + GAP), y))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished.png")
    sheet.save(unfinished, compress_level=1)
    os.replace(unfinished, target)


def pixels(frames: Tensor) -> np.ndarray:
    """Frames [n, 3, H, W] in [-1, 1] as uint8 [n, H, W, 3]; values outside are clipped."""
    levels = ((frames.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return levels.byte().movedim(1, -1).cpu().numpy()
