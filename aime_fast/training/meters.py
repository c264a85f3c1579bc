"""Scalars of many steps, summed on the device and read once per log interval."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

Sums = tuple[str, float, float, float]
"""A name, the weighted sum of its finite values, their weights, and how often it was not finite."""
Gather = Callable[[list[Sums]], list[list[Sums]]]
"""Collects the sums of every rank."""


@dataclass(frozen=True)
class Reading:
    """Statistics since the last reading."""

    means: dict[str, float]
    """Mean of the finite values by name; NaN if none was finite."""
    nonfinite: dict[str, int]
    """How often each value was NaN or infinite; names without such values are left out."""


class Meter:
    """Sums of named 0-d tensors; no host sync until `read`."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._totals: Tensor | None = None

    def add(self, values: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add 0-d tensors by name with a weight. Raises ValueError if the names differ from the first call's."""
        if self._totals is None:
            self._names = tuple(values)
        elif self._names != tuple(values):
            raise ValueError(f"a meter's names must not change; these did: {sorted(set(self._names) ^ set(values))}")
        row = torch.stack([value.detach() for value in values.values()]).double()
        finite = torch.isfinite(row)
        totals = torch.stack(
            [
                torch.where(finite, row, 0.0) * weight,
                finite * weight,
                (~finite).double(),
            ]
        )
        self._totals = totals if self._totals is None else self._totals + totals

    def read(self, gather: Gather = lambda sums: [sums]) -> Reading:
        """Means since the last reading, in one transfer; then start again.

        `gather` collects every rank's sums, so all ranks read the same means. A rank may have added nothing.
        """
        mine = [] if self._totals is None else list(zip(self._names, *self._totals.tolist(), strict=True))
        self._totals = None
        merged: dict[str, list[float]] = {}
        for name, *row in chain.from_iterable(gather(mine)):
            merged[name] = [a + b for a, b in zip(merged.get(name, (0.0, 0.0, 0.0)), row, strict=True)]
        means = {name: total / count if count else float("nan") for name, (total, count, _) in merged.items()}
        return Reading(means, {name: int(bad) for name, (_, _, bad) in merged.items() if bad})


class SkipWatch:
    """Counts skipped steps on the device: the current run of them, the longest run, and all."""

    def __init__(self, device: torch.device, in_a_row: int = 0) -> None:
        """`in_a_row` is the number of steps skipped just before."""
        self._counts = torch.tensor([in_a_row, in_a_row, 0], device=device)

    def add(self, finite: Tensor) -> None:
        """Count one step; `finite` is a 0-d bool tensor, False if the step was skipped."""
        skipped = (~finite).to(self._counts)
        row = (self._counts[0] + 1) * skipped
        self._counts = torch.stack([row, torch.maximum(self._counts[1], row), self._counts[2] + skipped])

    def read(self) -> tuple[int, int, int]:
        """(current run, longest run, all skipped) since the last reading; a run may have begun before it."""
        row, longest, count = self._counts.tolist()
        self._counts = torch.tensor([row, row, 0], device=self._counts.device)
        return row, longest, count


class Interval:
    """The steps since the last row of metrics: values, skipped steps and training time.

    It is a context manager; its clock runs only inside the context.
    """

    def __init__(self, device: torch.device, skipped_in_a_row: int = 0) -> None:
        self._meter = Meter()
        self._skips = SkipWatch(device, skipped_in_a_row)
        self._entered = 0.0
        self.steps = 0
        """Steps in the interval."""
        self.seconds = 0.0
        """Time inside the context."""

    def __enter__(self) -> "Interval":
        self._entered = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._entered

    def add(self, values: Mapping[str, Tensor], finite: Tensor) -> None:
        """Add one step's values, and whether its gradients were finite."""
        self._meter.add(values)
        self._skips.add(finite)
        self.steps += 1

    def read(self, gather: Gather) -> tuple[Reading, tuple[int, int, int]]:
        """Read values and skipped steps; the only call of the interval that waits for the device."""
        return self._meter.read(gather), self._skips.read()

    def restart(self) -> None:
        """Begin the next interval."""
        self.steps, self.seconds = 0, 0.0


def average(losses_of: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of each value over the micro-batches."""
    if len(losses_of) == 1:
        return losses_of[0]
    return {name: torch.stack([losses[name] for losses in losses_of]).mean() for name in losses_of[0]}
