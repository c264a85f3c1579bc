"""Processes that record episodes side by side, one per core, each into a file of its own."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import h5py

from aime_fast.data.collect.simulation import Choices, Simulation
from aime_fast.data.episode import Episode
from aime_fast.errors import UserError

FRAMES_A_REPORT = 8


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


class CollectorPool:
    """`size` processes that simulate what `choices` name and render with `graphics` (a value of `MUJOCO_GL`).

    A member that meets a mistake of the user's raises it here as `UserError`, and so does one that is killed.
    """

    def __init__(self, choices: Choices, graphics: str, size: int) -> None:
        # A forked process would share the graphics driver's state, which no driver allows.
        context = get_context("spawn")
        self._members: dict[Connection, BaseProcess] = {}
        for _ in range(size):
            ours, theirs = context.Pipe()
            member = context.Process(target=_work, args=(theirs, choices, graphics), daemon=True)
            member.start()
            # With their end closed here, a member that dies ends the conversation instead of leaving it silent.
            theirs.close()
            self._members[ours] = member

    def provenance(self) -> dict[str, Any]:
        """What decides the frames, as the members report it once they are ready; every one must say the same."""
        said = [self._listen(connection) for connection in self._members]
        if any(other != said[0] for other in said):
            raise UserError("the processes do not render alike; set MUJOCO_GL, or record with --processes 1")
        return said[0]

    def record(self, files: Sequence[tuple[int, Path]]) -> Iterator[int]:
        """Record each episode into its file, which appears whole or not at all; yields frames as they are done."""
        left = list(reversed(files))
        busy = set()
        for connection in self._members:
            if left:
                connection.send(left.pop())
                busy.add(connection)
        while busy:
            for connection in cast(list[Connection], wait(list(busy))):
                frames = self._listen(connection)
                yield frames
                if frames == 0:  # the episode is over
                    busy.remove(connection)
                    if left:
                        connection.send(left.pop())
                        busy.add(connection)

    def _listen(self, connection: Connection) -> Any:
        try:
            said = connection.recv()
        except (EOFError, ConnectionResetError):
            self._members[connection].join()
            code = self._members[connection].exitcode or 0
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise UserError(
                f"a recording process was {how}; run the same command again, with --processes 1 if memory is short"
            ) from None
        if isinstance(said, UserError):
            raise said
        return said

    def __enter__(self) -> "CollectorPool":
        return self

    def __exit__(self, *_: object) -> None:
        """End every member at once; what it has not finished is not kept."""
        for connection, member in self._members.items():
            connection.close()
            member.terminate()
            member.join()


def _work(connection: Connection, choices: Choices, graphics: str) -> None:
    """Record episodes as they are asked for, until the conversation ends."""
    # Ctrl-C reaches every process of the terminal; the one in front decides what becomes of the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Mesa's software renderer would start a thread for every core in every process; pixels do not depend on it.
    os.environ.update(MUJOCO_GL=graphics, LP_NUM_THREADS="0")
    try:
        simulation = Simulation(choices)
        connection.send(simulation.provenance())
        while True:
            number, path = connection.recv()
            with _reporting(connection) as tick:
                write_episode(path, simulation.record(number, tick), choices.environment)
            connection.send(0)
    except UserError as mistake:
        connection.send(mistake)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        connection.close()


@contextmanager
def _reporting(connection: Connection) -> Iterator[Any]:
    """A function to call after each frame; frames are told in groups, and the rest at the end."""
    untold = 0

    def tick() -> None:
        nonlocal untold
        untold += 1
        if untold == FRAMES_A_REPORT:
            connection.send(untold)
            untold = 0

    yield tick
    if untold:
        connection.send(untold)


def write_episode(path: Path, episode: Episode, environment: str) -> None:
    """Write one episode as an HDF5 recording, under another name until it is whole."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with h5py.File(unfinished, "w") as file:
            for name in ("observations", "actions", "rewards"):
                file[name] = getattr(episode, name)
            file["terminals"] = episode.terminated
            file.attrs["env"] = environment
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); make room or choose another folder") from error
    finally:
        unfinished.unlink(missing_ok=True)
