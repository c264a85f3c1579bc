"""The corpus of damaged inputs: what a case is, the ways in, and what alone may come of it.

A case damages a copy of good data, with draws decided by its name. Whatever reads it then either raises `UserError`,
one line that names the file (and the episode, where one chunk is damaged), or reads exactly what was there before. With
damaged chunks skipped, the windows that touch the chunk are missing, counted and logged, and all others are as before.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aime_fast.config import LoaderConfig
from aime_fast.data.backends import open_backend
from aime_fast.data.batch import Batch
from aime_fast.data.dataset import DMCVBDataset
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.errors import UserError

SEED = 20261124
SECONDS = 20
"""Longest that one case may take."""
T = 6
CONFIG = LoaderConfig(batch_size=4, sequence_length=T)
LENGTHS = [24, 5, 36, 18]
"""Episode 1 is too short for a window; 0 and 1 lie in the first shard, 2 and 3 in the second; 3 is for validation."""
STREAM_STEPS = 12
"""Batches in which a stream reads every training window at least once."""
EXACT, STREAMS = ("memory", "resident", "dali"), ("webdataset", "dali-stream")


@dataclass(frozen=True)
class Case:
    """One damage."""

    name: str
    damage: Callable[[Path, np.random.Generator], str]
    """Damages the data at a path and says how."""
    files: tuple[str, ...] = ()
    """Names of which a message must hold one; without any, that of the path."""
    chunk: tuple[int, int] | None = None
    """Episode and place in it of the chunk that alone is damaged."""
    refused: bool = False
    """Whether every exact way in must refuse it."""

    @property
    def random(self) -> np.random.Generator:
        return np.random.default_rng([SEED, zlib.crc32(self.name.encode())])


class Truth:
    """Every frame that was packed, found again by its pixels; no two are alike."""

    def __init__(self, data: dict[str, np.ndarray], frames: np.ndarray) -> None:
        self.data, self.frames = data, frames
        self.place = {frame.tobytes(): number for number, frame in enumerate(frames)}
        assert len(self.place) == len(frames)
        self.episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
        self.first = np.cumsum([0, *LENGTHS])

    def windows(self, batch: Batch) -> list[int]:
        """First frame of every window of the batch, after making sure that all of it is what was packed there."""
        firsts = []
        for row in range(len(batch)):
            frames = batch.observations[row].numpy()
            first = self.place.get(frames[0].tobytes())
            assert first is not None, f"window {row} begins with a frame that never was"
            rows = slice(first, first + len(frames))
            assert self.episode[first] == self.episode[rows][-1], "a window crosses an episode's end"
            assert np.array_equal(frames, self.frames[rows]), f"wrong frames in window {row}"
            for name, found in ((n, getattr(batch, n)) for n in ("actions", "rewards", "dones", "terminated")):
                assert np.array_equal(found[row].numpy(), self.data[name][rows]), f"wrong {name} in window {row}"
            firsts.append(first)
        return firsts

    def all_windows(self, split: str, without: tuple[int, int] | None = None) -> list[int]:
        """First frame of every window of a split, but for those that touch the chunk `without`."""
        chosen = [3] if split == "val" else [0, 1, 2]
        starts = [(e, s) for e in chosen for s in range(LENGTHS[e] - T + 1)]
        return [self.first[e] + s for e, s in starts if without is None or not touches(e, s, without)]


def touches(episode: int, start: int, chunk: tuple[int, int]) -> bool:
    return episode == chunk[0] and start // 16 <= chunk[1] <= (start + T - 1) // 16


def read_windows(kind: str, folder: Path, truth: Truth) -> Iterator[bytes]:
    """What training and evaluation see through a back-end, each batch held against the truth."""
    for split in ("train", "val") if kind in EXACT else ("train",):
        backend = open_backend(kind, folder, CONFIG, split, 0)
        batches = map(backend.batch, range(3 if kind in EXACT else STREAM_STEPS))
        for batch in (*batches, *(backend.evaluation_windows(1) if kind in EXACT else ())):
            truth.windows(batch)
            yield batch.observations.numpy().tobytes()
        yield backend.survey().mean_frame.numpy().tobytes()


def read_dataset(folder: Path, truth: Truth) -> Iterator[bytes]:
    for split in ("train", "val"):
        dataset = DMCVBDataset(folder, T, split=split)
        for number in range(len(dataset)):
            item = dataset[number]
            pixels = ((item["observations"] + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
            truth.windows(
                Batch(pixels[None], *(item[name][None] for name in ("actions", "rewards", "dones", "terminated")))
            )
            yield item["observations"].numpy().tobytes()


def read_deep(folder: Path, truth: Truth) -> Iterator[bytes]:
    yield inspect(folder, deep=True).splitlines()[-1].encode()


def read_by_packing(folder: Path, truth: Truth) -> Iterator[bytes]:
    """Pack it again; what is refused leaves nothing behind."""
    out = folder.with_name("again")
    try:
        pack(folder, out, codec="raw")
        yield from (path.read_bytes() for path in sorted(out.iterdir()) if path.name != "manifest.json")
    except UserError:
        assert [path for path in folder.parent.iterdir() if "again" in path.name] == [], "a refused pack left files"
        raise
    finally:
        shutil.rmtree(out, ignore_errors=True)


WAYS: dict[str, Callable[[Path, Truth], Iterator[bytes]]] = {
    "inspect": read_deep,
    "pack": read_by_packing,
    "dataset": read_dataset,
    **{kind: (lambda folder, truth, kind=kind: read_windows(kind, folder, truth)) for kind in (*EXACT, *STREAMS)},
}


def outcome(read: Callable[[], Iterator[bytes]]) -> tuple[str, str]:
    """`refused` and the message, or `read` and the checksum of all that was read."""
    digest = hashlib.sha256()
    try:
        for part in read():
            digest.update(part)
    except UserError as error:
        return "refused", str(error)
    return "read", digest.hexdigest()


@contextmanager
def watched(case: Case, damage: str) -> Iterator[None]:
    """A case that takes too long is interrupted; whatever goes wrong says how to do it again."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    except BaseException as error:
        error.add_note(f"case {case.name!r}, seed {SEED}, damage: {damage}")
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_clear(message: str, case: Case, path: Path) -> None:
    """One printable line that names the file, and the episode of a damaged chunk."""
    assert message.isprintable(), f"not one printable line: {message!r}"
    assert len(message) < 1000, f"{len(message)} characters: {message!r}"
    files = case.files or (path.name,)
    assert any(name in message for name in files), f"names none of {files}: {message!r}"
    assert not re.search("Traceback|weights_only|0x[0-9a-f]{6}", message), f"not for people: {message!r}"


def flip(path: Path, random: np.random.Generator, first: int = 0, end: int | None = None) -> str:
    """Flip one bit between two places of a file."""
    content = bytearray(path.read_bytes())
    place, bit = int(random.integers(first, len(content) if end is None else end)), int(random.integers(8))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.name}: bit {bit} of byte {place} of {len(content)} flipped"


def cut(path: Path, random: np.random.Generator) -> str:
    """Cut a file short at a random place, its start included, so that more than its last byte is lost."""
    size = path.stat().st_size
    keep = int(random.integers(0, size - 1))
    os.truncate(path, keep)
    return f"{path.name}: cut to {keep} of {size} bytes"


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


FORKS = multiprocessing.get_context("forkserver")
"""Processes forked from one that has imported what they need and started no thread."""


def isolated(function: Callable[..., Any], *arguments: object) -> Any:
    """What `function` returns in a process of its own: for what might end the interpreter, which is a failure."""
    FORKS.set_forkserver_preload(["damage_of_recordings", "aime_fast.data.backends"])
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(SECONDS) else TimeoutError(f"not done after {SECONDS} s")
    except EOFError:
        process.join()
        answer = AssertionError(f"the interpreter ended with {process.exitcode} (negative: killed by that signal)")
    finally:
        process.kill()
        process.join()
        process.close()
        receiver.close()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _send(sender: Any, function: Callable[..., Any], arguments: tuple) -> None:
    try:
        sender.send(function(*arguments))
    except BaseException as error:
        sender.send(AssertionError(f"{type(error).__name__}: {error}"))
