"""Pictures of what a model sees: frames, reconstructions, and where its slots look."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

COLUMNS = 8
"""Frames shown, evenly spaced over the window."""
ZOOM = 2
"""Screen pixels a frame's pixel takes, each way."""
MARGIN, GAP = 104, 4
"""Width of the row labels and space between tiles, in screen pixels."""
SLOT_COLOURS = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (241, 196, 15), (142, 68, 173), (243, 155, 127))
"""Colour of each slot, RGB in 0..255; used again from the start beyond six slots."""


def save_reconstruction_grid(
    path: str | Path,
    originals: Tensor,
    reconstructions: Tensor,
    perceiver_reconstructions: Tensor,
    attention_maps: Tensor,
    title: str,
) -> None:
    """Write a PNG with the rows original, reconstruction, perceiver and attention.

    Args:
        path: the file, written whole or not at all; its folder is made.
        originals, reconstructions, perceiver_reconstructions: [T, 3, H, W] in [-1, 1].
        attention_maps: [T, S, G, G], each slot's map summing to 1 over the grid.
        title: one line above the rows.
    """
    shown = spread(len(originals))
    frames = pixels(originals[shown])
    rows = {
        "original": frames,
        "reconstruction": pixels(reconstructions[shown]),
        "perceiver": pixels(perceiver_reconstructions[shown]),
        "attention": overlay(frames, attention_maps[shown]),
    }
    save_rows(path, rows, title, [f"t = {int(t)}" for t in shown])


def save_rollout_grid(path: str | Path, truth: Tensor, imagined: Tensor, known: int, title: str) -> None:
    """Write a PNG with the rows truth and imagined, [T, 3, H, W] in [-1, 1]; the first `known` were seen."""
    shown = spread(len(truth))
    names = [f"t = {int(t)}" + (" seen" if t < known else "") for t in shown]
    save_rows(path, {"truth": pixels(truth[shown]), "imagined": pixels(imagined[shown])}, title, names)


def overlay(frames: np.ndarray, maps: Tensor) -> np.ndarray:
    """Frames uint8 [n, H, W, 3], dimmed, with each cell in the colours of the slots that look at it.

    A map is shown relative to its own peak, so that a slot spread over the frame stays as visible as a sharp one.
    """
    size = frames.shape[1:3]
    shares = F.interpolate(maps.float(), size=size, mode="nearest").movedim(1, -1).cpu().numpy()
    strength = shares / np.maximum(shares.max((1, 2), keepdims=True), 1e-12)
    colours = np.array([SLOT_COLOURS[slot % len(SLOT_COLOURS)] for slot in range(maps.shape[1])], np.float32)
    mixed = strength @ colours / np.maximum(strength.sum(-1, keepdims=True), 1e-12)
    cover = 0.6 * strength.max(-1, keepdims=True)
    return ((1 - cover) * frames + cover * mixed).astype(np.uint8)


def save_rows(path: str | Path, rows: dict[str, np.ndarray], title: str, names: list[str]) -> None:
    """Write labelled rows of tiles uint8 [n, H, W, 3] as one PNG, atomically."""
    count, height, width = next(iter(rows.values())).shape[:3]
    tile = (width * ZOOM, height * ZOOM)
    font = ImageFont.load_default(13)
    top = 2 * 20
    size = (MARGIN + count * (tile[0] + GAP), top + len(rows) * (tile[1] + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 2), title, fill="black", font=font)
    for column, name in enumerate(names):
        draw.text((MARGIN + column * (tile[0] + GAP), 20), name, fill="gray", font=font)
    for row, (label, tiles) in enumerate(rows.items()):
        y = top + row * (tile[1] + GAP)
        draw.text((6, y + tile[1] // 2 - 8), label, fill="black", font=font)
        for column, image in enumerate(tiles):
            enlarged = Image.fromarray(image).resize(tile, Image.Resampling.NEAREST)
            sheet.paste(enlarged, (MARGIN + column * (tile[0] + GAP), y))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished.png")
    sheet.save(unfinished)
    os.replace(unfinished, target)


def spread(frames: int) -> list[int]:
    """At most `COLUMNS` frame numbers, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, frames - 1, min(COLUMNS, frames)).round().astype(int)).tolist()


def pixels(frames: Tensor) -> np.ndarray:
    """Frames [n, 3, H, W] in [-1, 1] as uint8 [n, H, W, 3]; values outside are clipped."""
    levels = ((frames.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    return levels.byte().movedim(1, -1).cpu().numpy()
