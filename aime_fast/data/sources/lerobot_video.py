"""Videos of LeRobot data sets: which frame belongs to which row, checked before it is believed.

A row's frame is the one at `from_timestamp` + row / fps seconds of its file. LeRobot's own reader takes the nearest
frame and refuses one that is more than 1e-4 s away (`decode_video_frames`, `tolerance_s`).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.sources.frames import as_frames
from aime_fast.data.sources.source import readable
from aime_fast.errors import UserError

RATE_TOLERANCE = 0.01
"""Relative difference of the video's frame rate from the rows'; times are checked more closely, frame by frame."""


@dataclass(frozen=True)
class Clip:
    """The part of a video file that shows an episode."""

    name: str
    """Of the episode, for error messages."""
    path: Path
    start: float
    """Time of its first frame, in seconds."""
    stop: float | None
    """Time of the frame after its last, if the data set keeps it."""
    length: int
    """Number of rows, each with a frame."""


@dataclass(frozen=True)
class Timing:
    """When frames are shown."""

    fps: float
    """Rows in a second."""
    tolerance: float
    """Largest distance in seconds of a frame from the time of its row."""

    def time(self, clip: Clip, row: int) -> float:
        """The time in seconds of a row's frame in its file."""
        return clip.start + row / self.fps

    def check(self, where: Path) -> None:
        """Raise `UserError` if the tolerance is so large that a neighbour's frame would pass."""
        if not 0 <= self.tolerance < 0.5 / self.fps:
            raise UserError(
                f"{where}: --video-tolerance is {self.tolerance:g} s; it must be below half a frame, "
                f"{0.5 / self.fps:g} s at {self.fps:g} frames a second"
            )


def check_clips(clips: Iterable[Clip], timing: Timing) -> tuple[str, ...]:
    """Check the clips of all episodes against each other and against their files; what is left out, in a sentence.

    `UserError` if clips overlap, start between two frames, span another number of frames than rows, or do not lie in
    the file, and if the video has another rate than the rows.
    """
    spare = 0
    for path, group in groupby(sorted(clips, key=lambda clip: (str(clip.path), clip.start)), lambda clip: clip.path):
        of_file = list(group)
        used = _check_order(of_file, timing)
        held = _frames_in_file(path, timing) or used
        if held < used:
            raise UserError(
                f"{of_file[-1].name}: its last frame is number {used - 1} of {path}, which has {held}; repair "
                "meta/episodes or download it again"
            )
        spare += held - sum(clip.length for clip in of_file)
    if not spare:
        return ()
    return (f"{spare} frames of its videos belong to no row: from_timestamp decides which are left out",)


def _check_order(clips: Sequence[Clip], timing: Timing) -> int:
    """Check clips of one file, in order of time; the frame after the last."""
    before = 0
    for clip in clips:
        frame = round(clip.start * timing.fps)
        where = f"{clip.name}: from_timestamp {clip.start:g} s of {clip.path}"
        off = abs(clip.start - frame / timing.fps)
        if off > timing.tolerance:
            raise UserError(
                f"{where} is {off:.2g} s away from any frame at {timing.fps:g} frames a second; repair it, or accept "
                f"a difference below {0.5 / timing.fps:g} s with `aime-fast pack --video-tolerance`"
            )
        if frame < before:
            raise UserError(
                f"{where} is frame {frame}, but the episodes before it end at frame {before}; repair "
                "meta/episodes or download it again"
            )
        if clip.stop is not None and round((clip.stop - clip.start) * timing.fps) != clip.length:
            shown = round((clip.stop - clip.start) * timing.fps)
            raise UserError(
                f"{clip.name}: its part of {clip.path} has {shown} frames for {clip.length} rows, so it is unknown "
                "which belongs to which; repair or leave out the episode"
            )
        before = frame + clip.length
    return before


def _frames_in_file(path: Path, timing: Timing) -> int:
    """The number of frames that a file says it has, 0 if it does not say; `UserError` for another frame rate."""
    with _opened(path) as (_, stream):
        rate, frames = stream.average_rate, stream.frames
    if rate and abs(float(rate) / timing.fps - 1) > RATE_TOLERANCE:
        raise UserError(
            f"{path}: has {float(rate):.4g} frames a second, but meta/info.json says fps {timing.fps:g}; "
            "correct one of them"
        )
    return frames


def decode_clip(clip: Clip, timing: Timing, size: int) -> np.ndarray:
    """The frames of an episode, uint8 [length,S,S,3]: for each row the frame nearest in time.

    `UserError` if one is further away than the tolerance, or frames are missing.
    """
    frames, done = np.empty((clip.length, size, size, 3), np.uint8), 0
    with _opened(clip.path) as (container, stream):
        for frame, time in _nearest(container, stream, clip, timing):
            wanted = timing.time(clip, done)
            if abs(time - wanted) > timing.tolerance:
                raise UserError(
                    f"{clip.name}: row {done} is at {wanted:.6g} s of {clip.path}, but the nearest frame is at "
                    f"{time:.6g} s; repair the times, or accept it with `aime-fast pack --video-tolerance`"
                )
            frames[done] = as_frames(frame.to_ndarray(format="rgb24")[None], size)[0]
            done += 1
    if done < clip.length:
        raise UserError(f"{clip.name}: {clip.path} holds {done} of its {clip.length} frames; download it again")
    return frames


def _nearest(container: Any, stream: Any, clip: Clip, timing: Timing) -> Iterator[tuple[Any, float]]:
    """For each row the frame nearest to its time, and that frame's time. No frame is given twice."""
    import av

    # Seek to the last key frame before the clip; the frames between the two are passed over.
    container.seek(max(int((clip.start - timing.tolerance) * av.time_base), 0))
    done, best = 0, None
    for frame in container.decode(stream):
        time = frame.time or 0.0
        wanted = timing.time(clip, done)
        if best is not None and abs(time - wanted) >= abs(best[1] - wanted):
            yield best
            done += 1
            if done == clip.length:
                return
        best = frame, time
    if best is not None:
        yield best


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A container and its first video stream."""
    import av

    with readable(path, "video"), av.open(str(path)) as container:
        yield container, container.streams.video[0]
