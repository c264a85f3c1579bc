"""A folder of shards as a recording, to pack it again with other choices."""

from pathlib import Path

import numpy as np

from aime_fast.data.episode import Episode
from aime_fast.data.shards.reader import open_shards
from aime_fast.data.sources.source import Source


def open_shard_folder(folder: Path) -> Source:
    """Open a folder that `pack` wrote; its notes remain, and what a lossy codec did becomes one of them."""
    episodes = _Episodes(folder)
    manifest = episodes.manifest
    notes = [*manifest.notes, *([f"frames were stored as {manifest.codec}, which is lossy"] if manifest.lossy else [])]
    lengths = [entry.length for entry in manifest.episodes]
    told = tuple(dict.fromkeys(notes))
    return Source("shards", str(folder), manifest.environment, lengths, episodes, told, manifest.collection)


class _Episodes:
    """The episodes by number; another process maps the shards itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.manifest, self._readers = open_shards(folder)

    def __call__(self, number: int) -> Episode:
        entry = self.manifest.episodes[number]
        reader = self._readers[entry.shard]
        strips = list(reader.strips(entry))
        return Episode(
            observations=np.concatenate([reader.pixels(strip) for strip in strips]),
            actions=np.concatenate([strip.actions for strip in strips]),
            rewards=np.concatenate([strip.rewards for strip in strips]),
            terminated=np.concatenate([strip.terminated for strip in strips]),
            truncated=np.concatenate([strip.truncated for strip in strips]),
            name=f"{self._folder}, episode {entry.id}",
        )

    def __reduce__(self) -> tuple[type["_Episodes"], tuple[Path]]:
        return _Episodes, (self._folder,)
