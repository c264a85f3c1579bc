"""Cases in LeRobot data sets."""

import numpy as np
from field_case import READ, REFUSED, SAID, Case
from made_arrays import pointer
from made_videos import (
    CAMERA,
    data_set,
    episodes,
    first_video,
    other_video_file,
    rounded,
    shift,
    stops,
    times_go_on,
    two_cameras,
    video,
)

LEROBOT = "https://github.com/huggingface/lerobot/"
GITHUB = "https://github.com/"


def frames():
    return np.concatenate([shown[:-1] for shown, _, _ in episodes()])


def other_rows_file(row):
    if row["episode_index"] == 1:
        row["data/file_index"] = 1


VIDEOS = [
    Case(
        "start-off-by-26-ms",
        lambda f: data_set(f, shift(0.026, 0)),
        REFUSED,
        "0.024 s away from any frame at 20 frames a second",
        LEROBOT + "issues/2364",
    ),
    Case(
        "start-off-by-a-frame",
        lambda f: data_set(f, shift(0.05, 0)),
        REFUSED,
        "episode 1: from_timestamp 0.3 s",
        GITHUB + "OpenDriveLab/AgiBot-World/issues/149",
    ),
    Case(
        "start-in-the-episode-before",
        lambda f: data_set(f, shift(-0.05)),
        REFUSED,
        "the episodes before it end at frame 6",
        GITHUB + "huggingface/lerobot-dataset-visualizer/issues/113",
    ),
    Case(
        "start-of-another-file",
        lambda f: data_set(f, shift(10.0, 2)),
        REFUSED,
        "episode 2: its last frame is number 203",
        LEROBOT + "issues/2627",
    ),
    Case(
        "merged-start-not-reset",
        lambda f: data_set(f, shift(11 / 20, 2)),
        REFUSED,
        "episode 2: its last frame is number 14",
        LEROBOT + "pull/2438",
    ),
    Case(
        "60-fps-video-info-20",
        lambda f: video(data_set(f), first_video().repeat(3, 0), 60),
        REFUSED,
        "has 60 frames a second, but meta/info.json says fps 20",
        GITHUB + "pollen-robotics/grabette/issues/163",
    ),
    Case(
        "20-fps-video-info-30",
        lambda f: data_set(f, info=lambda m: m.update(fps=30)),
        REFUSED,
        "has 20 frames a second",
        LEROBOT + "issues/336",
    ),
    Case(
        "video-one-frame-short",
        lambda f: video(data_set(f), first_video(cut=1)),
        REFUSED,
        "which has 10",
        LEROBOT + "issues/2547",
    ),
    Case(
        "video-with-more-frames",
        lambda f: video(data_set(f), first_video(extra=3)),
        SAID,
        "3 frames of its videos belong to no row",
        LEROBOT + "issues/3883",
        frames,
    ),
    Case(
        "rows-times-go-on",
        times_go_on,
        REFUSED,
        "row 0 has timestamp 0.3 s, but 0 s",
        GITHUB + "unitreerobotics/unitree_lerobot/issues/41",
    ),
    Case(
        "part-longer-than-rows",
        lambda f: data_set(f, stops(1)),
        REFUSED,
        "has 6 frames for 5 rows",
        GITHUB + "OpenDriveLab/AgiBot-World/issues/149",
    ),
    Case(
        "parts-that-fit", lambda f: data_set(f, stops(0)), SAID, "decoded from video", LEROBOT + "issues/2814", frames
    ),
    Case(
        "start-of-three-decimals",
        lambda f: data_set(f, rounded, fps=7),
        REFUSED,
        "accept a difference below 0.0714286 s with `aime-fast pack --video-tolerance`",
        LEROBOT + "issues/2547",
    ),
    Case(
        "three-decimals-accepted",
        lambda f: data_set(f, rounded, fps=7),
        SAID,
        "decoded",
        LEROBOT + "issues/2547",
        frames,
        ("--video-tolerance", "0.001"),
    ),
    Case(
        "tolerance-of-a-frame",
        data_set,
        REFUSED,
        "it must be below half a frame, 0.025 s",
        LEROBOT + "issues/2627",
        options=("--video-tolerance", "0.05"),
    ),
    Case(
        "rows-of-another-file",
        lambda f: data_set(f, other_rows_file),
        REFUSED,
        "holds 0 of its 5 frames",
        GITHUB + "macrodata-labs/refiner/issues/193",
    ),
    Case("videos-numbered-apart", other_video_file, SAID, "decoded", GITHUB + "starVLA/starVLA/issues/279", frames),
    Case(
        "cameras-start-apart",
        two_cameras,
        SAID,
        "decoded",
        GITHUB + "starVLA/starVLA/issues/90",
        frames,
        ("--camera", "observation.images.side"),
    ),
    Case(
        "version-2.1",
        lambda f: data_set(f, info=lambda m: m.update(codebase_version="v2.1")),
        REFUSED,
        "LeRobot v2.1, not v3; convert it",
        LEROBOT + "issues/2191",
    ),
    Case(
        "lfs-video",
        lambda f: pointer(data_set(f) / "videos" / CAMERA / "chunk-000" / "file-000.mp4").parents[3],
        REFUSED,
        "file-000.mp4: a Git LFS pointer",
        GITHUB + "fgolemo/cl-workshop-cvpr21-docker/issues/15",
    ),
    Case(
        "pictures-in-rows",
        lambda f: data_set(f, video=False),
        READ,
        "",
        GITHUB + "Physical-Intelligence/openpi/issues/394",
        frames,
    ),
]
