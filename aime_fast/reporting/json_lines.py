"""Files of one JSON object a line, which a kill or a full disk leaves whole."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends rows, each with a `step`, to a file.

    A row is in the file when `append` returns, so a kill leaves at most an incomplete last line, which the next start
    removes. A row that cannot be written, as on a full disk, is dropped as a whole and counted in `dropped`; what is
    written later follows the last whole row.

    Args:
        path: the file; its folder is made if missing.
        resume_step: drop the rows after this step, which a resumed run writes again. None keeps every row.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _trim(self.path, resume_step)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the log
        self.dropped = 0
        """Rows that could not be written."""
        self.failure: OSError | None = None
        """Why the latest of them could not; None again after one that could."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row whole or not at all."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            rest = json.dumps(row, allow_nan=False).encode() + b"\n"
            while rest:  # a disk that fills takes a part and fails at the next
                rest = rest[self._file.write(rest) :]
            self.failure = None
        except OSError as error:
            self.dropped, self.failure = self.dropped + 1, error
            with suppress(OSError):
                self._file.truncate(size)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


def read_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """The complete rows of a file in order; an incomplete last line is skipped."""
    with open(path, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield json.loads(line)


def _trim(path: Path, last_step: int | None) -> None:
    """Drop an incomplete last line, and rows after `last_step`, by one atomic rename."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n")]
    if last_step is not None:
        kept = [line for line in kept if json.loads(line)["step"] <= last_step]
    if len(kept) == len(lines):
        return
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
