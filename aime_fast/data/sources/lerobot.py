"""LeRobot v3 data sets: rows in parquet files, pictures in videos or in the rows, many episodes to a file."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.action_origin import FOLLOWS, LED, ZeroActions, decide
from aime_fast.data.episode import Episode
from aime_fast.data.sources.frames import (
    LAST_FRAME_NOTE,
    LED_NOTE,
    NO_REWARDS_NOTE,
    choose_camera,
    decode_picture,
    episode_of,
    size_notes,
)
from aime_fast.data.sources.lerobot_video import Clip, Timing, check_clips, decode_clip
from aime_fast.data.sources.source import Pictures, Source, readable, require
from aime_fast.errors import UserError

FORMAT = "LeRobot v3"


def open_lerobot(folder: Path, pictures: Pictures) -> Source:
    """Open a data set's folder; `UserError` for another version, damage, or a missing library.

    Without `next.reward`, rewards are zero. `next.done` does not say why an episode ended: all count as truncated.
    """
    require("pyarrow", "lerobot", folder)
    info = _information(folder)
    features = info["features"]
    images = {name: feature for name, feature in features.items() if feature["dtype"] in ("video", "image")}
    camera = choose_camera(list(images), pictures.camera, str(folder))
    notes = list(size_notes(tuple(images[camera]["shape"]), pictures.size))
    if images[camera]["dtype"] == "video":
        require("av", "lerobot", folder)
        codec = images[camera].get("info", {}).get("video.codec", "an unnamed codec")
        notes.append(f"frames were decoded from video ({codec})")
    if not (has_rewards := "next.reward" in features):
        notes.append(NO_REWARDS_NOTE)
    rows = _episode_rows(folder)
    read = _Episodes(folder, info, rows, camera, pictures.size, Timing(info["fps"], pictures.video_tolerance))
    origin = decide(read.zero_actions(), str(folder), pictures.actions, usual=FOLLOWS)
    if origin.stored == LED:
        read = replace(read, led=True)
        notes += [LED_NOTE, LAST_FRAME_NOTE]
    lengths = [int(row["length"]) - read.led for row in rows]
    if images[camera]["dtype"] == "video":
        read.timing.check(folder)
        notes += check_clips(map(read.clip, rows), read.timing)
    facts = (FORMAT, str(folder), None, lengths, pictures.size, read, tuple(notes))
    return Source(*facts, has_rewards=has_rewards, origin=origin)


def _information(folder: Path) -> dict[str, Any]:
    """`meta/info.json`, with the fields that reading uses checked."""
    path = folder / "meta" / "info.json"
    with readable(path, FORMAT):
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

    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
        with readable(path, FORMAT):
            # The same file has statistics of every feature, which are not read.
            names = [name for name in parquet.read_schema(path).names if not name.startswith("stats/")]
            for row in parquet.read_table(path, columns=names).to_pylist():
                if not row["length"] > 0 or row["episode_index"] < 0:
                    raise ValueError(f"episode {row['episode_index']} has length {row['length']}")
                rows.append(row)
    if not rows:
        raise UserError(f"{folder}: meta/episodes names no episodes; download or record it again")
    return sorted(rows, key=lambda row: row["episode_index"])


@dataclass(frozen=True)
class _Episodes:
    """Reads the episode of a number."""

    folder: Path
    info: dict[str, Any]
    rows: list[dict[str, Any]]
    camera: str
    size: int
    timing: Timing
    led: bool = False
    """Whether actions led to the frame of their row."""

    def zero_actions(self) -> ZeroActions:
        """Which first and last actions are zero."""
        from pyarrow import parquet

        zeros, by_file = ZeroActions(), dict[Path, list[int]]()
        for row in self.rows:
            by_file.setdefault(self._path("data_path", row, "data/"), []).append(row["episode_index"])
        for path, numbers in by_file.items():
            with readable(path, FORMAT):
                table = parquet.read_table(path, columns=["episode_index", "frame_index", "action"])
                table = table.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
                owner, actions = table["episode_index"].to_numpy(), np.array(table["action"].to_pylist(), np.float32)
                for number in numbers:
                    zeros.see(actions[owner == number])
        return zeros

    def __call__(self, number: int) -> Episode:
        from pyarrow import parquet

        row, features = self.rows[number], self.info["features"]
        name, length = self._name(row), int(row["length"])
        video = features[self.camera]["dtype"] == "video"
        path = self._path("data_path", row, "data/")
        with readable(path, FORMAT):
            rewarded = ["next.reward"] if "next.reward" in features else []
            timed = ["timestamp"] if video and "timestamp" in features else []
            wanted = ["frame_index", "action", *rewarded, *timed, *([] if video else [self.camera])]
            only = [("episode_index", "=", row["episode_index"])]
            table = parquet.read_table(path, columns=wanted, filters=only).sort_by("frame_index")
            if table.num_rows != length or table["frame_index"].to_pylist() != list(range(length)):
                raise UserError(f"{name}: {path} holds {table.num_rows} of its {length} frames; download it again")
            actions = np.array(table["action"].to_pylist(), np.float32)
            rewards = np.array(table["next.reward"].to_pylist(), np.float32) if rewarded else np.zeros(length)
            if not video:
                images = np.stack([decode_picture(cell["bytes"]) for cell in table[self.camera].to_pylist()])
            if timed:
                self._check_times(np.array(table["timestamp"].to_pylist(), np.float64).reshape(-1), f"{name}, {path}")
        if video:
            images = decode_clip(self.clip(row), self.timing, self.size)
        rewards = rewards.reshape(-1)
        if self.led:
            images, actions, rewards = images[:-1], actions[1:], rewards[:-1]
        return episode_of(name, images, self.size, actions, rewards, terminated=False)

    def clip(self, row: dict[str, Any]) -> Clip:
        """The part of a video that shows an episode."""
        path, prefix = self._path("video_path", row, f"videos/{self.camera}/"), f"videos/{self.camera}/"
        with readable(self.folder / "meta" / "episodes", FORMAT):
            start, stop = float(row[f"{prefix}from_timestamp"]), row.get(f"{prefix}to_timestamp")
            if not 0 <= start < math.inf:
                raise ValueError(f"episode {row['episode_index']} starts at {start} s of its video")
        return Clip(self._name(row), path, start, None if stop is None else float(stop), int(row["length"]))

    def _check_times(self, times: np.ndarray, where: str) -> None:
        """Raise `UserError` unless the rows' own times [N] are those that their numbers and the rate give."""
        wanted = np.arange(len(times)) / self.timing.fps
        # They are stored in single precision.
        off = np.abs(times - wanted) - np.spacing(wanted.astype(np.float32))
        if not (off <= self.timing.tolerance).all():
            row = int(np.argmax(~(off <= self.timing.tolerance)))
            raise UserError(
                f"{where}: row {row} has timestamp {times[row]:g} s, but {wanted[row]:g} s at fps {self.timing.fps:g}; "
                "repair meta/info.json or the timestamps"
            )

    def _name(self, row: dict[str, Any]) -> str:
        return f"{self.folder}, episode {row['episode_index']}"

    def _path(self, template: str, row: dict[str, Any], prefix: str) -> Path:
        """The file of an episode, by a template of `info.json`; it must lie in the folder."""
        with readable(self.folder / "meta" / "episodes", FORMAT):
            numbers = {name: row[prefix + name] for name in ("chunk_index", "file_index")}
            path = Path(self.info[template].format(**numbers, video_key=self.camera))
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{self.folder}: info.json names {path}, which leads out of the folder; do not trust it")
        return self.folder / path
