"""`manifest.json`: what a folder of shards contains, with checksums."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from aime_fast.data.action_origin import ActionOrigin
from aime_fast.data.alignment import Alignment
from aime_fast.data.episode import DEFAULT_SIZE, LARGEST_SIZE, SIZE_STEP
from aime_fast.data.files import check_file
from aime_fast.data.shards.codecs import CODECS, Shape
from aime_fast.data.windows import keyed_order
from aime_fast.errors import UserError, unknown_name

FORMAT, FORMAT_VERSION = "aime-fast shards", 2
CHUNK_LENGTH = 16
MANIFEST_NAME = "manifest.json"
OPTIONAL = {"image_size", "has_rewards", "origin", "alignment"}
"""Fields that older manifests lack."""
SPLITS = ("train", "val", "all")
CONVENTION = "actions[t] is taken after seeing observations[t]; rewards[t] follows from actions[t]"
STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class ShardEntry:
    """One tar file and its index."""

    __pydantic_config__ = STRICT
    # A plain name: a manifest from elsewhere must not make us read outside its own folder.
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar$")]
    """Name in the folder. The index has the same name with the ending `.idx`."""
    samples: NonNegativeInt
    """Number of chunks."""
    bytes: NonNegativeInt
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class EpisodeEntry:
    """One episode: the place of its chunks, and its split. An episode never spans two shards."""

    __pydantic_config__ = STRICT
    id: int
    length: PositiveInt
    """Number of frames."""
    shard: int
    """Number of its shard."""
    first_sample: int
    """Number, in the shard, of its first chunk; the others follow."""
    split: Annotated[str, Field(pattern="^(train|val)$")]
    """`train` or `val`."""

    @property
    def chunks(self) -> int:
        """Number of chunks; the last one may be short."""
        return -(-self.length // CHUNK_LENGTH)

    def chunk_frames(self, number: int) -> int:
        """Number of frames of its chunk `number`."""
        return min(CHUNK_LENGTH, self.length - number * CHUNK_LENGTH)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a folder of shards."""

    __pydantic_config__ = STRICT
    format: str = FORMAT
    version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    environment: str | None
    """Recorded task, such as `cheetah_run`, if known."""
    codec: str
    lossy: bool
    """Whether the codec changed the pixels."""
    encoder: str
    """Library and settings that determined the compressed bytes."""
    image_size: Annotated[int, Field(ge=SIZE_STEP, le=LARGEST_SIZE, multiple_of=SIZE_STEP)] = DEFAULT_SIZE
    """S, the side of a frame in pixels."""
    strip_length: Annotated[int, Field(ge=16, le=16)] = CHUNK_LENGTH
    """Frames of a chunk."""
    action_dim: NonNegativeInt
    """A; 0 where nothing acts."""
    convention: str = CONVENTION
    action_statistics: dict[str, list[FiniteFloat]]
    """`mean`, `std`, `min`, `max` of each action component over the training episodes, to six decimals."""
    split_seed: int | None
    """Seed that drew the validation episodes; None if they are the last ones."""
    notes: list[str]
    """What packing changed, one sentence each."""
    collection: dict[str, Any] | None
    """How `aime-fast collect` recorded the episodes: choices, versions, renderer. None for other recordings."""
    shards: list[ShardEntry]
    episodes: Annotated[list[EpisodeEntry], Field(min_length=1)]
    has_rewards: bool = True
    """Whether the recording had rewards; without them they are zero."""
    origin: ActionOrigin | None = None
    """What the actions meant in the recording, and how that was known; None in format 1."""
    alignment: Alignment | None = None
    """What frames say about it; None in format 1."""

    def save(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`. Equal manifests give equal bytes."""
        fields = dataclasses.asdict(self)
        if self.has_rewards:  # written only where needed, so that older releases can read the rest
            del fields["has_rewards"]
        (folder / MANIFEST_NAME).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")

    def entries(self, split: str, where: Path | str) -> list[EpisodeEntry]:
        """The episodes of `split`, as in `episodes_of`."""
        return [self.episodes[n] for n in episodes_of(split, [entry.split for entry in self.episodes], where)]

    def shape(self, entry: EpisodeEntry, number: int) -> Shape:
        """Shape of the frames of chunk `number` of an episode: (n, S, S, 3)."""
        return entry.chunk_frames(number), self.image_size, self.image_size, 3


def holds_shards(folder: Path) -> bool:
    """Whether `folder` has a manifest of shards, in order or not. Checkpoints have a file of the same name."""
    try:
        fields = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("format") == FORMAT


def load_manifest(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`; `UserError` says what is wrong and what to do."""
    path = folder / MANIFEST_NAME
    try:
        if not os.path.lexists(path):
            raise UserError(f"{folder}: no {MANIFEST_NAME} here; give a folder that `aime-fast pack` wrote")
        return parse_manifest(check_file(path).read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); pack the data again") from error


def parse_manifest(content: bytes, path: Path | str) -> Manifest:
    """The checked manifest in `content`; `UserError` starts with `path`."""
    try:
        fields = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); pack the data again") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise UserError(f"{path}: not a manifest of aime-fast shards; give a folder that `aime-fast pack` wrote")
    version = fields.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{path}: shard format {version} is newer than the {FORMAT_VERSION} this release reads; update aime-fast"
        )
    try:
        if missing := {field.name for field in dataclasses.fields(Manifest)} - fields.keys() - OPTIONAL:
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        manifest = _ADAPTER.validate_json(content)
        _check(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        found = "" if first["type"] in ("missing", "json_invalid") else f", found {first['input']!r:.80}"
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}{found}"
    except ValueError as error:
        problem = str(error)
    else:
        return manifest
    raise UserError(f"{path}: {problem}; the manifest was edited or damaged, pack the data again")


_ADAPTER = TypeAdapter(Manifest)


def _check(manifest: Manifest) -> None:
    """Raise `ValueError` for the first contradiction between fields."""
    if manifest.codec not in CODECS:
        raise ValueError(f"unknown codec {manifest.codec!r} (known: {', '.join(CODECS)})")
    if manifest.lossy is not CODECS[manifest.codec].lossy:
        raise ValueError(f"codec {manifest.codec} with lossy {manifest.lossy!r}")
    if manifest.convention != CONVENTION:
        raise ValueError(f"actions are stored by another convention ({manifest.convention!r})")
    statistics, width = manifest.action_statistics, manifest.action_dim
    if statistics.keys() != {"mean", "std", "min", "max"} or any(len(row) != width for row in statistics.values()):
        raise ValueError(f"action statistics are not four rows of {width} numbers")
    samples = [0] * len(manifest.shards)
    for place, episode in enumerate(manifest.episodes):
        if episode.id != place:
            raise ValueError(f"episode {place} has a wrong id {episode.id}")
        if not 0 <= episode.shard < len(samples) or episode.first_sample != samples[episode.shard]:
            raise ValueError(f"episode {place} does not follow the one before it")
        samples[episode.shard] += episode.chunks
    if samples != [shard.samples for shard in manifest.shards]:
        raise ValueError("the episodes' chunks are not as many as the shards'")


def split_of_episodes(count: int, val_episodes: int | None = None, seed: int | None = None) -> list[str]:
    """`train` or `val` for each of `count` episodes; `UserError` if no training episode would be left.

    `val_episodes` (None: a fifth, at least one, but none of a single episode) are the last ones, or drawn with `seed`.
    """
    wanted = (max(1, count // 5) if count > 1 else 0) if val_episodes is None else val_episodes
    if not 0 <= wanted < count:
        raise UserError(f"{wanted} validation episodes of {count} leave nothing to train on; ask for 0 to {count - 1}")
    if seed is not None and not 0 <= seed < 2**64:
        raise UserError(f"the split's seed is {seed}; it must be from 0 to 2**64 - 1")
    order = np.arange(count) if seed is None else keyed_order(count, seed, 0)
    splits = np.full(count, "train", dtype=object)
    splits[order[count - wanted :]] = "val"
    return splits.tolist()


HELD_OUT = (
    "name other data with --data, or pack recordings of several episodes (--val-episodes says how many to hold out)"
)
"""What to do where no episode is held out."""


class EmptySplit(UserError):
    """No episode is in the split that was asked for."""


def episodes_of(split: str, splits: Sequence[str], where: Path | str) -> list[int]:
    """Numbers of the episodes in `split` (`train`, `val` or `all`); `EmptySplit` that starts with `where` for none."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    numbers = [number for number, own in enumerate(splits) if split in (own, "all")]
    if not numbers:
        raise EmptySplit(f"{where}: none of its {len(splits)} episodes is in split {split!r}; {HELD_OUT}")
    return numbers


def action_moments(actions: np.ndarray) -> np.ndarray:
    """Count, sum, sum of squares, minimum and maximum of an episode's actions [n,A]: float64 [5,A]."""
    actions = actions.astype(np.float64)
    count = np.full(actions.shape[1], len(actions))
    return np.stack([count, actions.sum(0), np.square(actions).sum(0), actions.min(0), actions.max(0)])


def action_statistics(moments: Sequence[np.ndarray], splits: Sequence[str]) -> dict[str, list[float]]:
    """`mean`, `std`, `min` and `max` of the actions of the training episodes, rounded to six decimals."""
    parts = np.stack([part for part, split in zip(moments, splits, strict=True) if split == "train"])
    count, total, squares = parts[:, :3].sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    rows: dict[str, Any] = {"mean": mean, "std": std, "min": parts[:, 3].min(0), "max": parts[:, 4].max(0)}
    return {name: [round(float(value), 6) for value in row] for name, row in rows.items()}
