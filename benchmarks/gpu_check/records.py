"""The results: one JSON object per line, on disk when `append` returns."""

import json
import os
from pathlib import Path

Row = dict[str, object]


class Records:
    """Rows of a file.

    A row names its stage and its job. With "status" it is the job's end (`ok`, `failed`, `timed out`, `skipped`,
    `interrupted`), otherwise something the job measured.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = path.read_bytes() if path.exists() else b""
        self._write(b"\n" if earlier and not earlier.endswith(b"\n") else b"")  # a killed process left half a line

    def append(self, row: Row) -> None:
        """Write a row."""
        self._write(json.dumps(row, default=str).encode() + b"\n")

    def rows(self) -> list[Row]:
        """All rows; lines that are no JSON object are left out."""
        return [row for line in self.path.read_bytes().splitlines() if (row := parsed(line)) is not None]

    def _write(self, line: bytes) -> None:
        with open(self.path, "ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())


def parsed(line: bytes) -> Row | None:
    """The JSON object in a line, or None."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
