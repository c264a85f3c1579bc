"""Draw what a run imagines after a few context frames, as a figure or as a video, beside what was recorded."""

import argparse
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path

from aime_fast.commands.shared import add_held_out, add_run, between, new_file, note
from aime_fast.errors import PlainParser, UserError

FIGURES, VIDEOS = (".pdf", ".svg", ".png"), (".gif", ".mp4")
FRAMES, FPS = 10, 10
"""Frames in a row of a figure, and frames a second of a video."""
MOST = 2**63 - 1
WIDEST = 40.0
"""Inches."""


def add_arguments(parser: PlainParser) -> None:
    """The options of `imagine`."""
    add_run(parser)
    add_held_out(parser)
    add = parser.add_argument
    any_number = between(0, MOST)
    add("--out", required=True, metavar="FILE", help="figure (.pdf, .svg, .png) or video (.gif, .mp4) to write")
    add("--episode", type=any_number, metavar="N", help="held-out episode, from 0 [the first that is long enough]")
    add("--start", type=any_number, default=0, metavar="N", help="the window's first frame in it [%(default)s]")
    add("--samples", type=between(1, 16), default=1, metavar="N", help="futures to draw [%(default)s]")
    add("--seed", type=any_number, default=0, metavar="N", help="seed of the futures [%(default)s]")
    add(
        "--frames",
        type=_frames,
        metavar="N|LIST",
        help=f"frames in a row of a figure: how many, or which of the window, as 0,4,5,9,19 [{FRAMES}]",
    )
    add("--width", type=_inches, metavar="INCHES", help="of a figure [7]")
    add("--title", metavar="TEXT", help="of a figure, '' for none [what it shows]")
    add("--fps", type=between(1, 50), metavar="N", help=f"frames a second of a video [{FPS}]")


def run(
    run_folder: str,
    data: str | None,
    actions: str | None,
    context: int,
    horizon: int,
    out: str,
    episode: int | None,
    start: int,
    samples: int,
    seed: int,
    frames: int | tuple[int, ...] | None,
    width: float | None,
    title: str | None,
    fps: int | None,
) -> int:
    """Imagine one held-out window and write the file."""
    path = new_file("--out", out, *FIGURES, *VIDEOS)
    video = path.suffix.lower() in VIDEOS
    _check_fitting(path, {"--frames": frames, "--width": width, "--title": title} if video else {"--fps": fps})
    from aime_fast.reporting.charts.imagined import spread_over

    shown = frames if isinstance(frames, tuple) else spread_over(context, horizon, frames or FRAMES)
    _check_shown(shown, context, horizon)
    if video:
        from aime_fast.reporting.video import check_encoder

        check_encoder(path)
    import numpy as np

    from aime_fast.data.store import open_store
    from aime_fast.evaluation.live.snapshot import take_prediction
    from aime_fast.evaluation.windows import Windows
    from aime_fast.training.checkpoint.opening import open_run

    opened = open_run(run_folder, note)
    source = opened.data_path(data, note)
    held_out = open_store(source, "val", actions=opened.reading_of_actions(source, actions))
    opened.check_data(held_out, note)
    episode = _episode(held_out.lengths, episode, start, context, horizon)
    window = Windows(held_out, context + horizon, np.array([[episode, start]])).batch(np.arange(1))
    seen = take_prediction(opened.model(), window, context, samples, seed)
    if title is None:
        where = f"held-out episode {episode}, frames {start} to {start + context + horizon - 1}"
        title = f"{held_out.environment or 'recording'}, {where}"
    if video:
        from aime_fast.reporting.video import pictures, save_video

        _write(path, lambda: save_video(pictures(seen), path, fps or FPS))
    else:
        from aime_fast.reporting.charts.imagined import imagined
        from aime_fast.reporting.charts.style import WIDTH, save

        figure = imagined(seen, shown, title, width or WIDTH)
        _write(path, lambda: save(figure, path))
    print(f"wrote {out}")
    return 0


def _frames(text: str) -> int | tuple[int, ...]:
    """How many frames, or which ones."""
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"must be a number of frames or a list such as 0,4,5,9, not {text!r}")
    if len(numbers) == 1:
        return between(2, MOST)(text)
    return tuple(sorted({int(number) for number in numbers}))


def _inches(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not (isfinite(width) and 1 <= width <= WIDEST):
        raise argparse.ArgumentTypeError(f"must be inches from 1 to {WIDEST:g}, not {text!r}")
    return width


def _check_fitting(path: Path, others: dict[str, object]) -> None:
    """Refuse options of the other kind of file."""
    for option, value in others.items():
        if value is not None:
            kinds = FIGURES if path.suffix.lower() in VIDEOS else VIDEOS
            raise UserError(f"{option} is for {', '.join(kinds)}, and --out is {path}; leave {option} out")


def _check_shown(shown: Sequence[int], context: int, horizon: int) -> None:
    length = context + horizon
    if not shown[0] < context <= shown[-1] < length:
        seen = f"0 to {context - 1} are" if context > 1 else "0 is"
        raise UserError(
            f"--frames {','.join(map(str, shown))}: name at least one frame that is seen and one that is imagined; "
            f"{seen} seen, {context} to {length - 1} imagined (--context, --horizon)"
        )


def _episode(lengths: Sequence[int], asked: int | None, start: int, context: int, horizon: int) -> int:
    """The episode of the window: that of --episode, or the first that is long enough."""
    if asked is not None and asked >= len(lengths):
        raise UserError(f"--episode {asked}: the held-out episodes have the numbers 0 to {len(lengths) - 1}")
    length = start + context + horizon
    candidates = range(len(lengths)) if asked is None else [asked]
    for episode in candidates:
        if lengths[episode] >= length:
            return episode
    which = "the longest held-out episode" if asked is None else f"held-out episode {asked}"
    lower = "lower --context or --horizon" + (", or --start" if start else "")
    raise UserError(
        f"--start {start}, --context {context} and --horizon {horizon} need {length} frames; {which} has "
        f"{max(lengths[episode] for episode in candidates)}; {lower}"
    )


def _write(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"cannot write --out {path} ({error.strerror or error}); name another file") from error
