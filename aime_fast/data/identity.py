"""Which data a run was trained on: enough to find them again, and to notice that they are others."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aime_fast.data.action_origin import ActionOrigin
from aime_fast.data.backends import Backend
from aime_fast.data.files import SAMPLE
from aime_fast.data.shards.manifest import MANIFEST_NAME
from aime_fast.data.streaming.reader import PIPE


@dataclass(frozen=True)
class DataIdentity:
    """The data of a run."""

    path: str | None
    """Absolute path, or `pipe:COMMAND`; None is the shipped sample."""
    environment: str | None
    """Recorded task, if the data names it."""
    image_size: int
    """S, the side of a frame in pixels."""
    action_low: Sequence[float]
    """Least value of each number of an action in the training episodes, [A]."""
    action_high: Sequence[float]
    """The same of the largest value."""
    fingerprint: str | None
    """Changes when the content does; None where looking would run a command."""
    actions: ActionOrigin | None = None
    """What actions meant in the recording, and on what evidence; None if an older version wrote it without."""

    @property
    def action_dim(self) -> int:
        """A, the size of an action."""
        return len(self.action_low)

    def __str__(self) -> str:
        task = f" ({self.environment})" if self.environment else ""
        return f"{self.path or 'the shipped sample'}{task}"


def identify(path: str | None, backend: Backend) -> DataIdentity:
    """The identity of the data at `path` (None: the shipped sample), whose training episodes `backend` reads."""
    low, high = backend.action_range()
    facts = (absolute(path), backend.environment, backend.image_size, low, high)
    return DataIdentity(*facts, fingerprint(path), backend.origin)


def absolute(path: str | None) -> str | None:
    """`--data` as it is found from any folder."""
    return path if path is None or path.startswith(PIPE) else os.path.abspath(path)


def fingerprint(path: str | None) -> str | None:
    """Sixteen hex digits that change when the data do; None for a pipe.

    Of shards it is that of the manifest, which has a checksum of every shard. Of a recording it covers the names and
    sizes of the files: another value of the same size in the same place goes unnoticed.
    """
    if path is not None and path.startswith(PIPE):
        return None
    place = SAMPLE if path is None else Path(path)
    if (place / MANIFEST_NAME).is_file():
        content = (place / MANIFEST_NAME).read_bytes()
    elif place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file())
        content = json.dumps([(str(file.relative_to(place)), file.stat().st_size) for file in files]).encode()
    else:
        content = str(place.stat().st_size).encode()
    return hashlib.sha256(content).hexdigest()[:16]
