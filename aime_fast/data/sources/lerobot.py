"""LeRobot v3 data sets: rows in parquet files, pictures in videos or in the rows, many episodes to a file."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.episode import FRAME_SHAPE, Episode
from aime_fast.data.sources.frames import as_frames, choose_camera, decode_picture, episode_of, size_notes
from aime_fast.data.sources.source import Source, require
from aime_fast.errors import UserError


def open_lerobot(folder: Path, camera: str | None = None) -> Source:
    """Open a data set's folder; `camera` chooses the pictures (`observation.images.top`) where there are several.

    `action[t]` is taken after frame t. Without `next.reward`, rewards are zero. `next.done` does not tell why an
    episode ended, so every one counts as cut. `UserError` for another version, damage, or a library that is missing.
    """
    require("pyarrow", "lerobot", folder)
    info = _information(folder)
    pictures = {name: feature for name, feature in info["features"].items() if feature["dtype"] in ("video", "image")}
    camera = choose_camera(list(pictures), camera, str(folder))
    video = pictures[camera]["dtype"] == "video"
    if video:
        require("av", "lerobot", folder)
    rows = _episode_rows(folder)
    notes = list(size_notes(tuple(pictures[camera]["shape"])))
    if video:
        codec = pictures[camera].get("info", {}).get("video.codec", "an unnamed codec")
        notes.append(f"frames were decoded from video ({codec})")
    if "next.reward" not in info["features"]:
        notes.append("no rewards were recorded: they are zero")
    lengths = [int(row["length"]) for row in rows]
    return Source(
        "LeRobot v3", str(folder), None, lengths, partial(_read, folder, info, rows, camera, video), tuple(notes)
    )


def _information(folder: Path) -> dict[str, Any]:
    """`meta/info.json`, with what reading needs of it checked."""
    path = folder / "meta" / "info.json"
    with _broken(path):
        info = json.loads(path.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        if not version.startswith("v3"):
            raise UserError(f"{path}: LeRobot {version}, not v3; convert it with the tool that lerobot ships")
        if not info["features"]["action"]["dtype"].startswith("float"):
            raise UserError(f"{path}: actions are {info['features']['action']['dtype']}, expected floats")
        for feature in info["features"].values():
            feature["dtype"], feature["shape"]
        if not 0 < info["fps"] < math.inf:
            raise ValueError(f"fps is {info['fps']}")
    return info


def _episode_rows(folder: Path) -> list[dict[str, Any]]:
    """The table of episodes, in order."""
    from pyarrow import parquet

    paths = sorted((folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    rows: list[dict[str, Any]] = []
    for path in paths:
        with _broken(path):
            # Statistics of every feature lie in the same file; they are not read.
            names = [name for name in parquet.read_schema(path).names if not name.startswith("stats/")]
            for row in parquet.read_table(path, columns=names).to_pylist():
                if not row["length"] > 0 or row["episode_index"] < 0:
                    raise ValueError(f"episode {row['episode_index']} has length {row['length']}")
                rows.append(row)
    if not rows:
        raise UserError(f"{folder}: meta/episodes names no episodes; download or record it again")
    return sorted(rows, key=lambda row: row["episode_index"])


def _read(
    folder: Path, info: dict[str, Any], rows: list[dict[str, Any]], camera: str, video: bool, number: int
) -> Episode:
    from pyarrow import parquet

    row = rows[number]
    name = f"{folder}, episode {row['episode_index']}"
    with _broken(folder / "meta" / "episodes"):
        path = _path(folder, info["data_path"], row["data/chunk_index"], row["data/file_index"])
    with _broken(path):
        wanted = ["frame_index", "action", *(["next.reward"] if "next.reward" in info["features"] else [])]
        table = parquet.read_table(
            path,
            columns=wanted if video else [*wanted, camera],
            filters=[("episode_index", "=", row["episode_index"])],
        ).sort_by("frame_index")
        length = int(row["length"])
        if table.num_rows != length or table["frame_index"].to_pylist() != list(range(length)):
            raise UserError(f"{name}: {path} holds {table.num_rows} of its {length} frames; download it again")
        actions = np.array(table["action"].to_pylist(), np.float32)
        rewards = (
            np.array(table["next.reward"].to_pylist(), np.float32) if "next.reward" in wanted else np.zeros(length)
        )
    if video:
        images = _decode_video(folder, info, row, camera, length, name)
    else:
        with _broken(path):
            images = np.stack([decode_picture(cell["bytes"]) for cell in table[camera].to_pylist()])
    return episode_of(name, images, actions, rewards.reshape(-1), terminated=False)


def _decode_video(
    folder: Path, info: dict[str, Any], row: dict[str, Any], camera: str, length: int, name: str
) -> np.ndarray:
    """The episode's frames, uint8 [length,64,64,3]: its span of a file that holds several episodes."""
    import av

    with _broken(folder / "meta" / "episodes"):
        place = {part: row[f"videos/{camera}/{part}"] for part in ("chunk_index", "file_index", "from_timestamp")}
        path = _path(folder, info["video_path"], place["chunk_index"], place["file_index"], camera)
    step, start = 1 / info["fps"], place["from_timestamp"]
    frames = np.empty((length, *FRAME_SHAPE), np.uint8)
    done = 0
    with _broken(path), av.open(str(path)) as container:
        # To the last picture before the span that needs no other one; those between the two are passed over.
        container.seek(int(start * av.time_base))
        for frame in container.decode(video=0):
            ahead = (frame.time or 0.0) - start - done * step
            if ahead < -step / 2:
                continue
            if ahead > step / 2:
                break
            frames[done] = as_frames(frame.to_ndarray(format="rgb24")[None])[0]
            done += 1
            if done == length:
                return frames
    raise UserError(f"{name}: {path} holds {done} of its {length} frames; download it again")


def _path(folder: Path, template: str, chunk: int, file: int, camera: str = "") -> Path:
    """The file that a template of `info.json` names, which must lie in the folder."""
    path = Path(template.format(chunk_index=chunk, file_index=file, video_key=camera))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{folder}: its info.json names {path}, which leads out of the folder; do not trust it")
    return folder / path


@contextmanager
def _broken(path: Path) -> Iterator[None]:
    """Turn what damage in `path` leads to into `UserError`."""
    try:
        yield
    # PyArrow's and PyAV's errors are kinds of these.
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read as LeRobot v3 ({error}); download or record it again") from error
