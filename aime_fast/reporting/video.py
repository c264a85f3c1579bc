"""The video of a prediction: truth beside prediction beside error, as GIF or MP4."""

import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from aime_fast.errors import UserError
from aime_fast.reporting.charts.style import ERRORS
from aime_fast.reporting.figures import FAINT, INK
from aime_fast.reporting.prediction import Prediction

SUFFIXES = (".gif", ".mp4")
TILE, GAP, HEAD = 192, 4, 22
"""Pixels: the least height of a frame, between frames, a line of text."""
QUALITY = "16"
"""Constant rate factor of H.264: 0 is lossless, 23 is usual."""


def check_encoder(path: Path) -> None:
    """Raise `UserError` if the library that writes this kind of video is missing."""
    if path.suffix.lower() == ".mp4" and find_spec("av") is None:
        raise UserError(f"--out {path} needs av; run pip install 'aime-fast[av]', or name a .gif file")


def pictures(seen: Prediction) -> Iterator[np.ndarray]:
    """A picture uint8 [height, width, 3] for each frame, with even sides: a row for each future.

    Each frame is enlarged by a whole number. A line of text says what is seen, the PSNR and the frame's number.
    """
    height, width = seen.truth.shape[1:3]
    zoom = max(1, -(-TILE // height))
    errors = seen.errors
    tinted = (colormaps[ERRORS](errors / max(float(errors.max()), 1 / 255))[..., :3] * 255).round().astype(np.uint8)
    tile = (width * zoom, height * zoom)
    size = 3 * tile[0] + 2 * GAP, HEAD + len(seen.made) * (tile[1] + HEAD)
    font = ImageFont.load_default(13)
    for frame, truth in enumerate(seen.truth):
        sheet = Image.new("RGB", tuple(side + side % 2 for side in size), "white")
        draw = ImageDraw.Draw(sheet)
        made = "filtered" if frame < seen.context else "imagined"
        for column, name in enumerate(("truth", made, "error")):
            draw.text((column * (tile[0] + GAP) + 4, 3), name, fill=INK, font=font)
        for future, guess in enumerate(seen.made[:, frame]):
            y = HEAD + future * (tile[1] + HEAD)
            for column, picture in enumerate((truth, guess, tinted[future, frame])):
                enlarged = Image.fromarray(picture).resize(tile, Image.Resampling.NEAREST)
                sheet.paste(enlarged, (column * (tile[0] + GAP), y))
            draw.text((4, y + tile[1] + 3), f"t = {frame}", fill=FAINT, font=font)
            draw.text((tile[0] + GAP + 4, y + tile[1] + 3), f"{seen.psnr[future, frame]:.1f} dB", fill=FAINT, font=font)
        yield np.asarray(sheet)


def save_video(frames: Iterable[np.ndarray], path: Path, fps: int) -> None:
    """Write pictures uint8 [height, width, 3] with even sides by the suffix; under another name until it is whole.

    Raises OSError.
    """
    draft = path.with_name(f"{path.stem}.unfinished{path.suffix}")
    write = _write_mp4 if path.suffix.lower() == ".mp4" else _write_gif
    try:
        write(list(frames), draft, fps)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _write_gif(frames: list[np.ndarray], path: Path, fps: int) -> None:
    first, *others = (Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames)
    first.save(path, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)


def _write_mp4(frames: list[np.ndarray], path: Path, fps: int) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=fps, options={"crf": QUALITY})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"  # what every player shows
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
