"""Times of LeRobot videos: whatever the rate and the error, a row gets its own frame or the episode is refused."""

from fractions import Fraction

import numpy as np
import pytest
from made_arrays import noise

from aime_fast.data.sources.lerobot_video import Clip, Timing, check_clips, decode_clip
from aime_fast.errors import UserError

LENGTHS = [5, 4, 3]
RATES = [1, 7, 10, 20, Fraction(30000, 1001), 50, 60, 120]
STEPS = [-1, -0.52, -0.4, -0.1, 0.1, 0.4, 0.52, 1, 2]
"""Errors of a start in rows; those within half a row may be accepted, the others never."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """By rate and number of B-frames: a file, and the frames that it shows."""
    import av

    made = {}

    def get(rate, reordered=0, spare=0):
        if (rate, reordered, spare) not in made:
            path = tmp_path_factory.mktemp("videos") / "file.mp4"
            frames, _ = noise(sum(LENGTHS) + spare, seed=int(rate))
            with av.open(str(path), "w") as container:
                options = {"qp": "0", "preset": "ultrafast", "g": "6", "bf": str(reordered)}
                stream = container.add_stream("libx264rgb", rate=rate, options=options)
                stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
            made[rate, reordered, spare] = path, frames
        return made[rate, reordered, spare]

    return get


def clips_of(path, rate, wrong=0.0, episode=1):
    """The clips of all episodes, one of which starts `wrong` seconds late."""
    firsts = np.cumsum([0, *LENGTHS[:-1]]).tolist()
    starts = [first / float(rate) + wrong * (number == episode) for number, first in enumerate(firsts)]
    return [
        Clip(f"episode {number}", path, start, None, length)
        for number, (start, length) in enumerate(zip(starts, LENGTHS, strict=True))
    ]


def read(clips, timing):
    notes = check_clips(clips, timing)
    return [decode_clip(clip, timing, 64) for clip in clips], notes


def assert_right(read_frames, frames):
    np.testing.assert_array_equal(np.concatenate(read_frames), frames)


@pytest.mark.parametrize("reordered", [0, 2])
@pytest.mark.parametrize("rate", RATES)
def test_every_row_gets_its_frame(videos, rate, reordered):
    """Also from files whose frames are stored in another order than they are shown."""
    path, frames = videos(rate, reordered)
    found, notes = read(clips_of(path, rate), Timing(float(rate), 1e-4))
    assert_right(found, frames)
    assert notes == ()


@pytest.mark.parametrize("wrong", [-0.9e-4, -3e-5, 3e-5, 0.9e-4])
@pytest.mark.parametrize("rate", RATES)
def test_rounded_times_are_read(videos, rate, wrong):
    """A file's own times are rounded too, to less than 4e-5 s at these rates."""
    path, frames = videos(rate)
    found, _ = read(clips_of(path, rate, wrong), Timing(float(rate), 1e-4 if abs(wrong) < 5e-5 else 2e-4))
    assert_right(found, frames)


@pytest.mark.parametrize("episode", [0, 1, 2])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rate", [7, 20, 60])
def test_wrong_times_are_refused(videos, rate, steps, episode):
    path, frames = videos(rate)
    clips = clips_of(path, rate, steps / rate, episode)
    with pytest.raises(UserError, match=r"episode [012]"):
        read(clips, Timing(rate, 1e-4))
    # Even a tolerance as large as can be never gives the frame of another row.
    timing = Timing(rate, 0.499 / rate)
    timing.check(path)
    if abs(steps) < 0.5 and not (episode == 0 and steps < 0):
        assert_right(read(clips, timing)[0], frames)
    elif abs(steps) > 0.5:
        with pytest.raises(UserError):
            read(clips, timing)


@pytest.mark.parametrize("said", [5, 19.7, 25, 60])
def test_another_rate_is_refused(videos, said):
    path, _ = videos(20)
    with pytest.raises(UserError, match=r"has 20 frames a second, but meta/info.json says fps"):
        check_clips(clips_of(path, said), Timing(said, 1e-4))


def test_frames_of_no_row_are_counted(videos):
    """Two at the end, and one between two episodes."""
    path, frames = videos(20, spare=3)
    first, second, third = clips_of(path, 20)
    clips = [first, *(Clip(c.name, path, c.start + 1 / 20, None, c.length) for c in (second, third))]
    found, notes = read(clips, Timing(20, 1e-4))
    assert_right(found, np.delete(frames, [5, 13, 14], axis=0))
    assert notes == ("3 frames of its videos belong to no row: from_timestamp decides which are left out",)


@pytest.mark.parametrize("tolerance", [-1e-4, 0.025, 1.0, float("nan")])
def test_a_tolerance_that_would_take_neighbours_is_refused(tmp_path, tolerance):
    with pytest.raises(UserError, match=r"it must be below half a frame, 0\.025 s"):
        Timing(20, tolerance).check(tmp_path)
