"""Readers of recordings, one a format; each gives `Episode` records. The content of a file or folder decides which."""

import contextlib
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from aime_fast.data.action_origin import check_choice
from aime_fast.data.episode import check_image_size
from aime_fast.data.files import refuse_pointer
from aime_fast.data.shards.manifest import MANIFEST_NAME
from aime_fast.data.sources.arrays import open_hdf5, open_npz, open_torch
from aime_fast.data.sources.columns import columns_source
from aime_fast.data.sources.lerobot import open_lerobot
from aime_fast.data.sources.minari_folder import open_minari
from aime_fast.data.sources.rlds import open_rlds
from aime_fast.data.sources.shards import open_shard_folder
from aime_fast.data.sources.source import VIDEO_TOLERANCE, Pictures, Source, without_fragments
from aime_fast.errors import UserError, unknown_name

__all__ = ["Source", "open_source"]

OF_FILES: dict[str, Callable[[Path, Sequence[Path], Pictures], Source]] = {
    "hdf5": partial(columns_source, "HDF5", open_hdf5),
    "npz": partial(columns_source, "npz", open_npz),
    "rlds": open_rlds,
    "torch": partial(columns_source, "torch", open_torch),
}
OF_FOLDERS: dict[str, Callable[[Path, Pictures], Source]] = {
    "lerobot": open_lerobot,
    "minari": open_minari,
    "shards": open_shard_folder,
}
SIGNS = {"shards": (MANIFEST_NAME,), "lerobot": ("meta/info.json",), "minari": ("metadata.json", "data/metadata.json")}
"""Files by which a folder of a format is recognised."""
ENDINGS = {".h5": "hdf5", ".hdf5": "hdf5", ".pt": "torch", ".pth": "torch", ".npz": "npz"}
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")


def open_source(
    path: str | Path,
    format: str | None = None,
    camera: str | None = None,
    size: int | None = None,
    last_of_stack: bool = False,
    video_tolerance: float = VIDEO_TOLERANCE,
    actions: str | None = None,
) -> Source:
    """Open a recording: a file, a folder of files of one kind, or a folder in a layout of its own.

    `format` is a name in `OF_FOLDERS` or `OF_FILES`; None lets the content decide. `camera` names the pictures if there
    are several. Frames are resized to `size` x `size` (None: 64, or the shards' own). `last_of_stack` and
    `video_tolerance` are those of `Pictures`. `actions` says whether they `led` to the frame of their row or
    `follows` it; None lets the content decide. Episodes without a transition are left out. `UserError` for a wrong
    choice, and for an open one.
    """
    path = Path(path)
    # Unlike Path's methods, these return False for a name too long. A named pipe or a device might never end.
    if not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"{path}: no such file or folder; check the path")
    refuse_pointer(path)
    if (path / "checkpoints").is_dir() and (path / "config.yaml").is_file():
        raise UserError(f"{path}: a run, not data; its config.yaml says what it was trained on")
    formats = [*OF_FOLDERS, *OF_FILES]
    if format is not None and format not in formats:
        raise unknown_name("--format", format, formats)
    pictures = Pictures(camera, size if size is None else check_image_size(size), last_of_stack, video_tolerance)
    pictures = replace(pictures, actions=check_choice(actions))
    kind = format or (_kind_of_folder(path) if path.is_dir() else _kind_of_file(path))
    if kind in OF_FOLDERS and path.is_dir():
        source = OF_FOLDERS[kind](path, pictures)
        # What was packed keeps its numbers, which the manifest names.
        return source if kind == "shards" else without_fragments(source)
    if kind in OF_FILES:
        files = _files(path, kind) if path.is_dir() else [path]
        if files:
            return without_fragments(OF_FILES[kind](path, files, pictures))
    if path.suffix.lower() in VIDEOS:
        raise UserError(
            f"{path}: a video holds no actions; write its frames and the action after each as columns `frames` and "
            "`actions` of an HDF5 file (docs/data.md)"
        )
    looked_for = f"holds no recording of format {format}" if format else "not a recording that can be read"
    has = f"no {MANIFEST_NAME} here, nor any other known layout" if path.is_dir() else "no known kind of file"
    raise UserError(f"{path}: {looked_for} ({has}); known are {', '.join(formats)}")


def _kind_of_folder(folder: Path) -> str | None:
    for kind, signs in SIGNS.items():
        if any((folder / sign).is_file() for sign in signs):
            return kind
    kinds = {_kind_of_file(path) for path in _candidates(folder)} - {None}
    if len(kinds) > 1:
        has = ", ".join(sorted(filter(None, kinds)))
        raise UserError(f"{folder}: holds files of several kinds ({has}); choose one with --format")
    return kinds.pop() if kinds else None


def _files(folder: Path, kind: str) -> list[Path]:
    """Files of `kind` in a folder, sorted by name, with numbers in names sorted by value."""
    files = [path for path in _candidates(folder) if _kind_of_file(path) == kind]
    return sorted(files, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)])


def _candidates(folder: Path) -> list[Path]:
    """The files that may be recordings: those of the folder, or of its only version folder, as TFDS makes it."""
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    versions = [path for path in paths if path.is_dir() and re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if len(versions) == 1 and not any(path.is_file() for path in paths):
        return _candidates(versions[0])
    return [path for path in paths if path.is_file()]


def _kind_of_file(path: Path) -> str | None:
    """The format by the first bytes, or by the name if these are unknown, so that its reader says what is wrong."""
    if not path.is_file():
        return None
    refuse_pointer(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if start == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if start[:2] == b"PK":
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return "npz" if all(name.endswith(".npy") for name in archive.namelist()) else "torch"
    if ".tfrecord" in path.name.lower():
        return "rlds"
    return ENDINGS.get(path.suffix.lower())
