"""`manifest.json`: what a folder of shards holds, and how to know that it still does."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aime_fast.data.episode import IMAGE_SIZE, Episode
from aime_fast.data.files import check_file
from aime_fast.data.shards.codecs import CODECS
from aime_fast.errors import UserError

FORMAT_VERSION = 1
STRIP_LENGTH = 16
MANIFEST_NAME = "manifest.json"
CONVENTION = "actions[t] is taken after seeing observations[t]; rewards[t] follows from actions[t]"


@dataclass(frozen=True)
class ShardEntry:
    """One tar file and its index."""

    file: str
    """Name in the folder; the index has the same name ending in `.idx`."""
    samples: int
    """Strips in it."""
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class EpisodeEntry:
    """One episode: where its strips lie, and the split it belongs to."""

    id: int
    length: int
    """Frames."""
    shard: int
    """Place of its shard in the list; an episode never spans two."""
    first_sample: int
    """Its first strip, counted within the shard; the others follow."""
    split: str
    """`train` or `val`."""

    @property
    def strips(self) -> int:
        """Strips it is cut into; the last may be short."""
        return -(-self.length // STRIP_LENGTH)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole description of a folder of shards."""

    version: int = FORMAT_VERSION
    environment: str | None
    """Task that was recorded, such as `cheetah_run`, where known."""
    codec: str
    lossy: bool
    """Whether the codec changed the pixels that it was given."""
    encoder: str
    """Library, and its settings, that decided the compressed bytes."""
    image_size: int = IMAGE_SIZE
    strip_length: int = STRIP_LENGTH
    action_dim: int
    convention: str = CONVENTION
    action_statistics: dict[str, list[float]]
    """`mean`, `std`, `min`, `max` of each action number over the training episodes, to six decimals."""
    split_seed: int | None
    """Seed that drew the validation episodes; none when they are the last ones."""
    notes: list[str]
    """What was changed on the way from the recording, one sentence each; empty when nothing was."""
    collection: dict[str, Any] | None
    """How `aime-fast collect` recorded the episodes: its choices, the versions, the renderer; none where it did not."""
    shards: list[ShardEntry]
    episodes: list[EpisodeEntry]

    def save(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`; the same manifest gives the same bytes."""
        fields = {"format": "aime-fast shards", **dataclasses.asdict(self)}
        (folder / MANIFEST_NAME).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def load_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`; `UserError` says what is wrong with it and what to do."""
    path = folder / MANIFEST_NAME
    try:
        if not os.path.lexists(path):
            raise UserError(f"{folder}: no {MANIFEST_NAME} here; give a folder that `aime-fast pack` wrote")
        return parse_manifest(check_file(path).read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); pack the data again") from error


def parse_manifest(content: bytes, path: Path | str) -> Manifest:
    """The checked manifest that `content` is; `path` names it in the messages of `UserError`."""
    try:
        fields = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); pack the data again") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != "aime-fast shards":
        raise UserError(f"{path}: not a manifest of aime-fast shards; give a folder that `aime-fast pack` wrote")
    version = fields.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{path}: shard format {version} is newer than the {FORMAT_VERSION} this release reads; update aime-fast"
        )
    try:
        if missing := {field.name for field in dataclasses.fields(Manifest)} - fields.keys():
            raise KeyError(*missing)
        fields["shards"] = [ShardEntry(**entry) for entry in fields["shards"]]
        fields["episodes"] = [EpisodeEntry(**entry) for entry in fields["episodes"]]
        manifest = Manifest(**fields)
        problem = _problem(manifest)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: fields are missing, unknown or of the wrong kind ({error}); pack again") from error
    if problem:
        raise UserError(f"{path}: {problem}; the manifest was edited or damaged, pack the data again")
    return manifest


def _problem(manifest: Manifest) -> str | None:
    """First contradiction inside the manifest, in words; None where there is none."""
    if type(manifest.version) is not int or manifest.version != FORMAT_VERSION:
        return f"format version {manifest.version!r} does not exist"
    if manifest.codec not in CODECS:
        return f"unknown codec {manifest.codec!r} (known: {', '.join(CODECS)})"
    if manifest.lossy is not CODECS[manifest.codec].lossy:
        return f"codec {manifest.codec} with lossy {manifest.lossy!r}"
    if (manifest.image_size, manifest.strip_length) != (IMAGE_SIZE, STRIP_LENGTH):
        return f"image size {manifest.image_size} and strip length {manifest.strip_length} are not 64 and 16"
    if manifest.convention != CONVENTION:
        return f"actions are stored by another convention ({manifest.convention!r})"
    if not isinstance(manifest.environment, str | None):
        return f"environment {manifest.environment!r} is not a name"
    if not isinstance(manifest.encoder, str) or type(manifest.split_seed) not in (int, type(None)):
        return f"encoder {manifest.encoder!r} or split seed {manifest.split_seed!r} is of the wrong kind"
    if not isinstance(manifest.notes, list) or not all(isinstance(note, str) for note in manifest.notes):
        return "notes are not a list of sentences"
    if not isinstance(manifest.collection, dict | None):
        return f"collection {manifest.collection!r} is not a table"
    return _action_problem(manifest) or _shard_problem(manifest) or _episode_problem(manifest)


def _action_problem(manifest: Manifest) -> str | None:
    width = manifest.action_dim
    if type(width) is not int or width < 1:
        return f"action_dim is {width!r}"
    rows = [manifest.action_statistics[name] for name in ("mean", "std", "min", "max")]
    if (
        len(manifest.action_statistics) != len(rows)
        or any(len(row) != width for row in rows)
        or not np.isfinite(np.array(rows, np.float64)).all()
    ):
        return f"action statistics are not four rows of {width} numbers"
    return None


def _shard_problem(manifest: Manifest) -> str | None:
    for shard in manifest.shards:
        # A manifest from elsewhere must not make us read outside its own folder.
        if not isinstance(shard.file, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar", shard.file):
            return f"shard name {shard.file!r} is not a plain .tar file name"
        if any(type(number) is not int or number < 0 for number in (shard.samples, shard.bytes)):
            return f"shard {shard.file} has a size that is not a count"
    return None


def _episode_problem(manifest: Manifest) -> str | None:
    samples = [0] * len(manifest.shards)
    for place, episode in enumerate(manifest.episodes):
        numbers = (episode.id, episode.length, episode.shard, episode.first_sample)
        if any(type(number) is not int for number in numbers) or episode.id != place or episode.length < 1:
            return f"episode {place} has a wrong id or length"
        if episode.split not in ("train", "val"):
            return f"episode {place} belongs to an unknown split {episode.split!r}"
        if not 0 <= episode.shard < len(samples) or episode.first_sample != samples[episode.shard]:
            return f"episode {place} does not follow the one before it"
        samples[episode.shard] += episode.strips
    if not manifest.episodes:
        return "no episodes"
    if samples != [shard.samples for shard in manifest.shards]:
        return "the episodes' strips are not as many as the shards'"
    return None


def split_of_episodes(count: int, val_episodes: int | None, seed: int | None) -> list[str]:
    """`train` or `val` for each of `count` episodes.

    `val_episodes` None takes a fifth, at least one, and none of a single episode. Without a seed they are the last
    ones, with one they are drawn. `UserError` when no training episode would be left.
    """
    wanted = (max(1, count // 5) if count > 1 else 0) if val_episodes is None else val_episodes
    if not 0 <= wanted < count:
        raise UserError(f"{wanted} validation episodes of {count} leave nothing to train on; ask for 0 to {count - 1}")
    if seed is not None and not 0 <= seed < 2**64:
        raise UserError(f"the split's seed is {seed}; it must be from 0 to 2**64 - 1")
    order = np.arange(count)
    if seed is not None:
        order = np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")
    splits = np.full(count, "train", dtype=object)
    splits[order[count - wanted :]] = "val"
    return splits.tolist()


class ActionStatistics:
    """Mean, spread and range of actions, gathered an episode at a time so that they need not fit in memory."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, np.ndarray]] = []

    def add(self, episode: Episode) -> None:
        """Take in the actions of the next episode."""
        actions = episode.actions.astype(np.float64)
        part = np.stack([actions.sum(0), np.square(actions).sum(0), actions.min(0), actions.max(0)])
        self._parts.append((len(actions), part))

    def extend(self, other: "ActionStatistics") -> None:
        """Take in the episodes of `other` after one's own."""
        self._parts += other._parts

    def over(self, chosen: Sequence[bool]) -> dict[str, list[float]]:
        """Statistics of the episodes marked in `chosen` (one mark for each added), rounded to six decimals."""
        parts = [part for part, taken in zip(self._parts, chosen, strict=True) if taken]
        frames = sum(count for count, _ in parts)
        sums = np.stack([part for _, part in parts])
        mean = sums[:, 0].sum(0) / frames
        std = np.sqrt(np.maximum(sums[:, 1].sum(0) / frames - mean**2, 0.0))
        rows: dict[str, Any] = {"mean": mean, "std": std, "min": sums[:, 2].min(0), "max": sums[:, 3].max(0)}
        return {name: [round(float(value), 6) for value in row] for name, row in rows.items()}
