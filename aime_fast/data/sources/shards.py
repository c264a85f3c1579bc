"""A folder of shards as a recording, to pack it again with other choices."""

from pathlib import Path

import numpy as np

from aime_fast.data.action_origin import FOLLOWS, ActionOrigin, defined_by
from aime_fast.data.episode import Episode
from aime_fast.data.shards.chunks import read_chunks
from aime_fast.data.shards.reader import open_shards
from aime_fast.data.shards.states import STATE, STATES, read_states
from aime_fast.data.shards.writer import TERMINATED, TRUNCATED
from aime_fast.data.sources.frames import as_frames, size_notes
from aime_fast.data.sources.source import Pictures, Source


def open_shard_folder(folder: Path, pictures: Pictures) -> Source:
    """Open a folder that `pack` wrote, in its own image size unless another one is asked for."""
    episodes = _Episodes(folder, pictures.asked_size)
    manifest = episodes.manifest
    notes = [*manifest.notes, *([f"frames were stored as {manifest.codec}, which is lossy"] if manifest.lossy else [])]
    notes += size_notes((manifest.image_size, manifest.image_size, 3), episodes.size)
    named, kept = STATE in (manifest.collection or {}), (folder / STATES).exists()
    notes += [f"{STATES} is missing, so the simulator's states are lost"] if named and not kept else []
    # The shards' own actions follow, whatever they did in the recording.
    defined_by("aime-fast shards", pictures.actions, str(folder))
    return Source(
        "shards",
        str(folder),
        manifest.environment,
        [entry.length for entry in manifest.episodes],
        episodes.size,
        episodes,
        tuple(dict.fromkeys(notes)),
        manifest.collection,
        manifest.has_rewards,
        read_states(folder, manifest).of if kept else None,
        manifest.origin or ActionOrigin(FOLLOWS, "an earlier release packed them so"),
    )


class _Episodes:
    """The episodes by number. Another process maps the shards itself."""

    def __init__(self, folder: Path, asked_size: int | None) -> None:
        self._arguments = (folder, asked_size)
        self.manifest, self._readers = open_shards(folder)
        self.size = asked_size or self.manifest.image_size

    def __call__(self, number: int) -> Episode:
        entry = self.manifest.episodes[number]
        table, chunks = read_chunks(self._readers, self.manifest, [entry])
        flags = np.concatenate([chunk.flags for chunk in chunks])
        return Episode(
            observations=as_frames(np.concatenate([table.decode(chunk) for chunk in range(len(table))]), self.size),
            actions=np.concatenate([chunk.actions for chunk in chunks]),
            rewards=np.concatenate([chunk.rewards for chunk in chunks]),
            terminated=flags & TERMINATED > 0,
            truncated=flags & TRUNCATED > 0,
            name=f"{self._arguments[0]}, episode {entry.id}",
        )

    def __reduce__(self) -> tuple[type["_Episodes"], tuple[Path, int | None]]:
        return _Episodes, self._arguments
