"""A pool of processes that do tasks and report their progress."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, Self, TypeVar, cast

from aime_fast.errors import UserError

Hello = TypeVar("Hello")
Task = TypeVar("Task")
Result = TypeVar("Result")
Tick = Callable[[int], object]
"""Called with a number of finished frames."""
Work = Callable[[Task, Tick], Result]
Start = Callable[..., tuple[Hello, Work[Task, Result]]]
GONE = (EOFError, BrokenPipeError, ConnectionResetError)


class WorkerPool(Generic[Hello, Task, Result]):
    """`size` spawned processes. Each calls `start(*arguments)`, which returns a first message and the work to do.

    `UserError` and `OSError` of a process are raised here, and a process that is killed is a `UserError`. At the end
    of the `with` block all processes end at once; unfinished tasks are lost. A process ends when this one is killed.
    """

    def __init__(
        self, size: int, start: Start[Hello, Task, Result], arguments: tuple[object, ...], advice: str
    ) -> None:
        """`advice` says what to do when a process is killed."""
        # Threads of libraries and graphics drivers do not survive a fork.
        context = get_context("spawn")
        self._advice = advice
        self._members: dict[Connection, BaseProcess] = {}
        for _ in range(size):
            ours, theirs = context.Pipe()
            member = context.Process(target=_serve, args=(theirs, start, arguments), daemon=True)
            member.start()
            # With their end closed here, a process that dies ends the connection, instead of a wait without end.
            theirs.close()
            self._members[ours] = member
        self._hellos: list[Hello] | None = None

    def hellos(self) -> list[Hello]:
        """The first message of each process, sent once it is ready."""
        if self._hellos is None:
            self._hellos = [cast(Hello, self._receive(connection)) for connection in self._members]
        return self._hellos

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, int | None, Result | None]]:
        """Do all tasks, in any order. Yields (frames, None, None) as they progress and (0, task number, result)."""
        self.hellos()
        left = list(enumerate(tasks))[::-1]
        busy: dict[Connection, int] = {}
        idle = list(self._members)
        while left or busy:
            while left and idle:
                connection = idle.pop(0)
                busy[connection], task = left.pop()
                with suppress(*GONE):  # reported by the next `_receive`
                    connection.send(task)
            for connection in cast(list[Connection], wait(list(busy))):
                frames, result = cast(tuple[int, Result], self._receive(connection))
                if frames:
                    yield frames, None, None
                else:
                    idle.append(connection)
                    yield 0, busy.pop(connection), result

    def _receive(self, connection: Connection) -> object:
        try:
            message = connection.recv()
        except GONE:
            self._members[connection].join()
            code = self._members[connection].exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise UserError(f"a worker process {how}; {self._advice}") from None
        if isinstance(message, UserError | OSError):
            raise message
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection, member in self._members.items():
            connection.close()
            member.terminate()
            member.join()


def _serve(connection: Connection, start: Start[Hello, Task, Result], arguments: tuple[object, ...]) -> None:
    """Do tasks until the connection ends."""
    # Ctrl-C reaches every process of a terminal; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(*GONE):
        try:
            hello, work = start(*arguments)
            connection.send(hello)
            while True:
                task = connection.recv()
                connection.send((0, work(task, lambda frames: connection.send((frames, None)))))
        except GONE:
            pass
        except (UserError, OSError) as error:
            connection.send(error)
    connection.close()
