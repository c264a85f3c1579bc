"""LeRobot data sets with what goes wrong in them. Rows are 20 a second, unless a case says otherwise."""

import json
import shutil

import numpy as np
import written_layouts as layouts
from made_arrays import noise

CAMERA = "observation.images.top"
LENGTHS = [6, 5, 4]


def episodes():
    """Of frames in noise, each with one frame more than actions, as `written_layouts` takes them."""
    made = []
    for number, length in enumerate(LENGTHS):
        frames, actions = noise(length + 1, seed=number)
        made.append((frames, actions[:-1], np.zeros(length, np.float32)))
    return made


def data_set(folder, change=None, info=None, fps=20, **options):
    """A v3 data set; `change` edits the rows of `meta/episodes`, `info` edits `meta/info.json`."""
    layouts.lerobot_folder(folder, episodes(), fps=fps, **options)
    if change:
        edit_rows(folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet", change)
    if info:
        path = folder / "meta" / "info.json"
        content = json.loads(path.read_text())
        info(content)
        path.write_text(json.dumps(content))
    return folder


def edit_rows(path, change):
    import pyarrow
    from pyarrow import parquet

    rows = parquet.read_table(path).to_pylist()
    for row in rows:
        change(row)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def shift(seconds, episode=1):
    """A change of `from_timestamp` of one episode."""

    def change(row):
        if row["episode_index"] == episode:
            row[f"videos/{CAMERA}/from_timestamp"] += seconds

    return change


def rounded(row):
    """Times with three decimals, as tables of metadata show them."""
    row[f"videos/{CAMERA}/from_timestamp"] = round(row[f"videos/{CAMERA}/from_timestamp"], 3)


def stops(extra):
    """A change that adds `to_timestamp`, `extra` frames too late in episode 1."""

    def change(row):
        start = row[f"videos/{CAMERA}/from_timestamp"]
        late = extra if row["episode_index"] == 1 else 0
        row[f"videos/{CAMERA}/to_timestamp"] = start + (row["length"] + late) / 20

    return change


def video(folder, frames, rate=20, file=0):
    """Replace a video."""
    path = folder / "videos" / CAMERA / "chunk-000" / f"file-{file:03d}.mp4"
    layouts.write_video(path, frames, rate)
    return folder


def first_video(cut=0, extra=0):
    """The frames of the first file, some cut from its end or added there."""
    shown = np.concatenate([frames[:-1] for frames, _, _ in episodes()[:2]])
    return np.concatenate([shown[: len(shown) - cut], noise(extra, seed=9)[0]])


def times_go_on(folder):
    """Rows whose own times go on from episode to episode, as a merge by hand leaves them."""
    times = {"timestamp": {"dtype": "float32", "shape": [1]}}
    data_set(folder, info=lambda content: content["features"].update(times))
    for number in range(2):
        path = folder / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        edit_rows(path, lambda row: row.update(timestamp=(row["frame_index"] + 6 * row["episode_index"]) / 20))
    return folder


def other_video_file(folder):
    """Videos that are numbered apart from the files of rows."""

    def change(row):
        row[f"videos/{CAMERA}/file_index"] += 4

    data_set(folder, change)
    videos = folder / "videos" / CAMERA / "chunk-000"
    for number in range(2):
        (videos / f"file-{number:03d}.mp4").rename(videos / f"file-{number + 4:03d}.mp4")
    return folder


def two_cameras(folder):
    """A second camera, whose file shows the first two episodes in the other order."""
    side = "observation.images.side"

    def change(row):
        start = {0: 5 / 20, 1: 0.0, 2: 0.0}[row["episode_index"]]
        top = {key.replace(CAMERA, side): value for key, value in row.items() if CAMERA in key}
        row.update(top | {f"videos/{side}/from_timestamp": start})

    data_set(folder, change, lambda content: content["features"].update({side: content["features"][CAMERA]}))
    shutil.copytree(folder / "videos" / CAMERA, folder / "videos" / side)
    (first, *_), (second, *_), _ = episodes()
    layouts.write_video(
        folder / "videos" / side / "chunk-000" / "file-000.mp4", np.concatenate([second[:-1], first[:-1]]), 20
    )
    return folder
