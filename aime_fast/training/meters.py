"""Scalars of many steps, kept on the device and read once per log interval."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """What a meter saw since the last reading."""

    means: dict[str, float]
    """Mean over the finite values of each name; NaN where none was finite."""
    nonfinite: dict[str, int]
    """Names that were NaN or infinite at least once, and how often."""


class Meter:
    """Sums of named 0-d tensors without a host sync until `read`."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._totals: Tensor | None = None

    def add(self, values: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add one 0-d tensor a name, counted `weight` times. The names must be those of the first call."""
        if self._totals is None:
            self._names = tuple(values)
        elif self._names != tuple(values):
            raise ValueError(f"a meter's names stay the same; these changed: {sorted(set(self._names) ^ set(values))}")
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

    def read(self, gather: Callable[[list], list[list]] = lambda rows: [rows]) -> Reading:
        """Means since the last reading, in one transfer, and start again.

        `gather` collects every rank's rows, so that all ranks read the same; a rank that added nothing counts nothing.
        """
        mine = [] if self._totals is None else list(zip(self._names, *self._totals.tolist(), strict=True))
        self._totals = None
        merged: dict[str, list[float]] = {}
        for name, *row in (row for rows in gather(mine) for row in rows):
            merged[name] = [a + b for a, b in zip(merged.get(name, (0.0, 0.0, 0.0)), row, strict=True)]
        means = {name: total / count if count else float("nan") for name, (total, count, _) in merged.items()}
        return Reading(means, {name: int(bad) for name, (_, _, bad) in merged.items() if bad})


class SkipWatch:
    """Counts skipped steps on the device: those in a row, the longest such run, and all."""

    def __init__(self, device: torch.device, in_a_row: int = 0) -> None:
        """`in_a_row` steps were skipped just before."""
        self._counts = torch.tensor([in_a_row, in_a_row, 0], device=device)

    def add(self, finite: Tensor) -> None:
        """Note one step; `finite` is a 0-d bool tensor, false where the step was skipped."""
        skipped = (~finite).to(self._counts)
        row = (self._counts[0] + 1) * skipped
        self._counts = torch.stack([row, torch.maximum(self._counts[1], row), self._counts[2] + skipped])

    def read(self) -> tuple[int, int, int]:
        """(skipped now in a row, longest such run, skipped in all) since the last reading; a run may begin before."""
        row, longest, count = self._counts.tolist()
        self._counts = torch.tensor([row, row, 0], device=self._counts.device)
        return row, longest, count


class Interval:
    """The steps since the last row of metrics: their values, those skipped, and the time they took.

    Use it as a context around what belongs to training: its clock runs in there only.
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
        """Note one step's values, and whether its gradients were finite."""
        self._meter.add(values)
        self._skips.add(finite)
        self.steps += 1

    def read(self, gather: Callable[[list], list[list]]) -> tuple[Reading, tuple[int, int, int]]:
        """The meter's reading and that of the skipped steps: the interval's only wait for the device."""
        return self._meter.read(gather), self._skips.read()

    def restart(self) -> None:
        """Begin the next interval."""
        self.steps, self.seconds = 0, 0.0


def average(losses_of: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each term over the micro-batches."""
    if len(losses_of) == 1:
        return losses_of[0]
    return {name: torch.stack([losses[name] for losses in losses_of]).mean() for name in losses_of[0]}
