"""Reads back what trackers have stored on this machine, without their own programs."""

import json
import sqlite3
from collections import defaultdict
from pathlib import Path

BLOCK, HEADER = 32768, 7


def wandb_rows(folder):
    """The rows of W&B's history in all offline runs of a folder, as {name: value}, and the ids of these runs."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, ids = [], []
    for path in sorted(Path(folder).glob("wandb/offline-run-*/*.wandb")):
        for message in _records(path.read_bytes()):
            record = Record.FromString(message)
            if record.WhichOneof("record_type") == "run":
                ids.append(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                rows.append(_values(record.history.item))
    return rows, ids


def _values(items):
    """{name: value} of a row; what has parts, such as a picture, becomes a dict of them."""
    values = {}
    for item in items:
        name, *part = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        values[name] = values.get(name, {}) | {part[0]: value} if part else value
    return values


def _records(content):
    """The records of a log in LevelDB's format: blocks of 32 KiB, whose parts say whether they end a record."""
    place, message = HEADER, b""  # W&B's own header
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        message += content[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (1, 4):  # whole, or last part
            yield message
            message = b""


def trackio_rows(folder):
    """(run name, step, values) of trackio's tables in order, and the titles of its alerts."""
    with sqlite3.connect(Path(folder) / "aime-fast.db") as tables:
        rows = [(n, s, json.loads(m)) for n, s, m in tables.execute("select run_name, step, metrics from metrics")]
        alerts = [title for (title,) in tables.execute("select title from alerts")]
    return rows, alerts


def tensorboard_events(folder):
    """TensorBoard's events of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(Path(folder) / "tensorboard"), size_guidance={"images": 0, "histograms": 0}).Reload()


def by_step(rows):
    """{(name, step): value} of rows that hold their step, numbers only."""
    found = defaultdict(dict)
    for step, values in rows:
        found.update({(name, step): value for name, value in values.items() if isinstance(value, int | float)})
    return dict(found)
