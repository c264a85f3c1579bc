"""Small host-side values that the processes of one run exchange besides gradients, over gloo."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from aime_fast.errors import UserError

T = TypeVar("T")
TIMEOUT_MINUTES = 10
"""A rank that waits longer than this for the others stops with an error; DEEPSPEED_TIMEOUT overrides."""


def time_limit() -> timedelta:
    """How long a rank may wait for the others, or a step may take; `UserError` where the environment is wrong."""
    minutes = os.environ.get("DEEPSPEED_TIMEOUT", str(TIMEOUT_MINUTES))
    if not minutes.isdecimal() or int(minutes) == 0:
        raise UserError(f"DEEPSPEED_TIMEOUT={minutes} in the environment: give whole minutes, at least 1")
    return timedelta(minutes=int(minutes))


class HostGroup:
    """Rank, world size and the agreements that the loop needs; no cost at world size 1.

    Built after the engine, which starts the process group. The group is gloo on every device, so an agreement neither
    waits for a GPU nor makes one wait.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size
        self._group = dist.new_group(backend="gloo", timeout=time_limit()) if world_size > 1 else None

    def gather(self, value: T) -> list[T]:
        """Every rank's `value` (any picklable object), in rank order, on every rank."""
        if self._group is None:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values  # type: ignore[return-value]

    def all(self, make: Callable[[], T]) -> list[T]:
        """Every rank's `make()`, in rank order, on every rank; an exception on one rank is raised on every rank."""
        outcome: T | Exception
        try:
            outcome = make()
        except Exception as error:
            outcome = error
        outcomes = self.gather(outcome)
        for each in outcomes:
            if isinstance(each, Exception):
                raise each
        return outcomes  # type: ignore[return-value]

    def first(self, make: Callable[[], T]) -> T:
        """Rank 0's `make()`, on every rank; an exception there is raised on every rank."""
        return self.all(lambda: make() if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def agree(self, read: Callable[[], tuple[float, int, bool]]) -> Callable[[], tuple[float, int, bool]]:
        """Start to agree on (seconds, signal, found), the largest of each over the ranks.

        The returned function waits for it. `found` says that a finding is to end the run.

        The reduction runs while the step computes. With one process the returned function reads the values.
        """
        if self._group is None:
            return read
        values = torch.tensor(read(), dtype=torch.float64)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group, async_op=True)

        def wait() -> tuple[float, int, bool]:
            work.wait()
            seconds, signal, found = values.tolist()
            return seconds, int(signal), bool(found)

        return wait
