"""The rows of a run as the rules read them."""

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any

HELD_OUT = ("val", "look")
"""Splits of held-out episodes: all windows, and the first batch of them."""
RECENT = 5
"""Rows of training that a rule looks at: 50 steps with the default `--logging.log-every`."""


@dataclass(frozen=True)
class Facts:
    """What a rule must know of a run's configuration."""

    tasks: tuple[str, ...] = ()
    solver: str = "rotation"
    clip: float = 5.0
    """Largest norm of an update."""
    components: int = 1
    """K of the prior; 1 for a Gaussian."""
    slots: int = 1
    codes: int = 1
    action_dim: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Facts":
        """From a configuration as nested plain values, such as a run's `config.yaml`."""
        model = config["model"]
        return cls(
            tasks=tuple(config["tasks"]),
            solver=config["balancing"]["solver"],
            clip=config["optim"]["clip"],
            components=1 if model["prior"] == "gaussian" else model["max_components"],
            slots=model["num_slots"],
            codes=model["num_codes"],
            action_dim=max(model["action_dim"], 0),
        )


class History:
    """The values of a run by split and name, in the order of their steps; a value that is not finite is left out."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.step = 0
        """The step of the newest row."""
        # A million steps give some six million values: 0.1 GB in arrays, 0.25 GB in lists.
        self._steps: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("q"))
        self._values: dict[tuple[str, str], array[float]] = defaultdict(lambda: array("d"))

    def add(self, step: int, split: str, values: Mapping[str, object]) -> None:
        """Take in one row."""
        self.step = step
        for name, value in values.items():
            if isinstance(value, int | float) and isfinite(value):
                self._steps[split, name].append(step)
                self._values[split, name].append(float(value))

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> "History":
        """Take in rows of `metrics.jsonl`; gives itself."""
        for row in rows:
            self.add(row["step"], row["split"], row)
        return self

    def names(self) -> list[str]:
        """The names of all values, in the order of their first rows."""
        return list(dict.fromkeys(name for _, name in self._values))

    def values(self, name: str, split: str = "train") -> Sequence[float]:
        """A value in all rows; empty where no row has it."""
        return self._values.get((split, name), ())

    def steps(self, name: str, split: str = "train") -> Sequence[int]:
        """The steps of these rows."""
        return self._steps.get((split, name), ())

    def recent(self, name: str) -> float | None:
        """The median of a value of training over the last rows; None before there are `RECENT` of them."""
        values = self.values(name)
        return median(values[-RECENT:]) if len(values) >= RECENT else None

    def held_out(self, name: str) -> float | None:
        """The newest value of validation, or of a look at one held-out batch; or None."""
        found = [
            (self.steps(name, split)[-1], self.values(name, split)[-1])
            for split in HELD_OUT
            if self.values(name, split)
        ]
        return max(found)[1] if found else None

    def at(self, name: str, step: int) -> float | None:
        """A value of training in the last row up to a step, or None."""
        place = bisect_right(self.steps(name), step)
        return self.values(name)[place - 1] if place else None
